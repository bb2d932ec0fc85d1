"""`kapell task tree`, `--after` and what a cancel does to children, against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kapell.cli.commands.task_tree import _branches
from kapell.v1.task_pb2 import Task, TaskTreeNode

from tests.cli.shell import Shell, compare, forget
from tests.cli.test_write import state
from tests.support.server_process import ServerProcess

GUIDE = Path(__file__).resolve().parents[2] / "server/docs/how-to/let-tasks-wait-for-tasks.md"


@pytest.fixture(scope="module")
def family(shell: Shell) -> Shell:
    """task_top → (task_left → task_leaf, task_right), made by somebody else's program."""
    from kapell import SyncClient

    with SyncClient(data_dir=shell.environment["KAPELL_DATA_DIR"]) as client:
        for name, parent in (("top", ""), ("left", "top"), ("right", "top"), ("leaf", "left")):
            fields = {"parent_task_id": f"task_{parent}"} if parent else {}
            client.tasks.create("nobody", f"The {name}", task_id=f"task_{name}", **fields)  # type: ignore[typeddict-item]
        client.tasks.cancel("task_right")
    return shell


def test_a_tree_is_drawn(family: Shell) -> None:
    runs = [
        ("kapell task tree task_top", family.terminal("task", "tree", "task_top")),
        ("kapell task tree task_top | cat", family.pipe("task", "tree", "task_top")),
        ("kapell task tree task_left -o id | cat", family.pipe("task", "tree", "task_left", "-o", "id")),
    ]

    compare(
        "task-tree", forget("\n".join(f"$ {line}\n{result.out}[exit {result.code}]\n" for line, result in runs), {})
    )


def test_a_tree_as_json_is_the_answer_of_the_server(family: Shell) -> None:
    answer = json.loads(family.pipe("task", "tree", "task_top", "-o", "json").out)

    assert [(node["task"]["taskId"], node.get("depth", 0)) for node in answer["nodes"]] == [
        ("task_top", 0),
        ("task_left", 1),
        ("task_leaf", 2),
        ("task_right", 1),
    ]


def test_lists_find_children(family: Shell) -> None:
    children = family.pipe("task", "list", "--parent", "task_top", "--oldest", "-o", "id").out.split()
    below = family.pipe("task", "list", "--root", "task_top", "--oldest", "-o", "id").out.split()

    assert children == ["task_left", "task_right"]
    assert below == ["task_left", "task_right", "task_leaf"]


def test_a_task_is_created_after_others(shell: Shell) -> None:
    for name in ("first", "second"):
        shell.pipe("task", "create", "-t", "nobody", "--id", f"task_{name}", "x")
    line = ("--after", "task_first", "--after", "task_second:finished", "--id", "task_last", "do it")

    created = shell.pipe("task", "create", "-t", "nobody", *line)

    assert created.out.split("\t")[:2] == ["task_last", "pending"]
    card = shell.terminal("task", "get", "task_last", NO_COLOR="1").out
    assert "for other tasks" in card
    assert "task_first, task_second:finished" in card
    shell.pipe("task", "cancel", "task_first")
    assert state(shell, "task_last") == "failed"
    retried = shell.pipe("task", "retry", "task_last")
    assert (retried.code, "kapell task retry task_first" in retried.err) == (5, True)


def test_what_is_no_dependency_is_a_wrong_line(shell: Shell) -> None:
    result = shell.pipe("task", "create", "-t", "nobody", "--after", "task_x:done", "x")

    assert result.code == 2
    assert "'task_x:done' is no dependency" in result.err


def test_children_may_be_left_by_a_cancel(shell: Shell) -> None:
    from kapell import SyncClient

    with SyncClient(data_dir=shell.environment["KAPELL_DATA_DIR"]) as client:
        client.tasks.create("nobody", task_id="task_alone")
        client.tasks.create("nobody", task_id="task_stays", parent_task_id="task_alone")

    assert shell.pipe("task", "cancel", "task_alone", "--leave-children").code == 0

    assert state(shell, "task_stays") == "queued"


def test_lines_are_drawn_from_parents_to_children() -> None:
    depths = [0, 1, 2, 3, 2, 1, 2]
    nodes = [TaskTreeNode(task=Task(task_id=str(index)), depth=depth) for index, depth in enumerate(depths)]

    assert list(reversed(_branches(nodes, marks=True).values())) == [
        "",
        "├─ ",
        "│  ├─ ",
        "│  │  └─ ",
        "│  └─ ",
        "└─ ",
        "   └─ ",
    ]


def test_every_block_of_the_guide_works(no_server: Shell, server_process: ServerProcess) -> None:
    environment = {**no_server.environment, "KAPELL_DATA_DIR": str(server_process.data_dir)}
    text = GUIDE.read_text(encoding="utf-8")
    script = "".join(re.findall(r"(?ms)^```sh\n(.*?)^```$", text))
    graph, worker = re.findall(r"(?ms)^```python\n(.*?)^```$", text)

    shown = run(["bash", "-euo", "pipefail", "-c", script], environment)
    made = run([sys.executable, "-c", graph], environment)
    served = run([sys.executable, "-c", worker + SERVED], environment)

    assert "It waits for task_build, which is QUEUED." in shown
    assert [line.split(" ", 1)[1] for line in made.splitlines()] == [
        "make",
        "make lint",
        "Review {deps.build.result.diff}",
    ]
    assert served == "['ONE', 'TWO']\n"


# The worker of the guide, beside a client that gives it something to do.
SERVED = """
import asyncio
from kapell import Client
from kapell._worker.values import from_value

async def main():
    running = asyncio.create_task(worker.run())
    async with Client() as client:
        done = await client.tasks.run("plan", "one\\ntwo", timeout=60)
    print(from_value(done.result))
    worker.stop()
    await running

asyncio.run(main())
"""


def run(command: list[str], environment: dict[str, str]) -> str:
    """What a program of the guide prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout
