"""What `kapell up --demo` shows of locks, money and questions: each claim, on a demo of the test's own."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from kapell.demo import scenes

from tests.cli.conftest import shell_environment
from tests.cli.shell import Shell
from tests.cli.test_up import left_over, read_until, running

SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Demo:
    """A demo that runs, and a shell beside it. Its lines are read in the order in which they come."""

    shell: Shell
    process: subprocess.Popen[str]

    def json(self, *args: str) -> Any:
        """What a command answers."""
        return json.loads(self.shell.pipe(*args, "-o", "json").out)

    def tasks(self, scene: scenes.Scene) -> list[dict[str, Any]]:
        """The tasks of a scene, in the order of its jobs, as often as it was played; the first time first."""
        found: list[dict[str, Any]] = self.json("task", "list", "--oldest", "--label", f"demo.scene={scene.name}")
        return found

    def first(self, *jobs: scenes.Job) -> list[dict[str, Any]]:
        """The first tasks of these jobs, after their end."""
        ids = [
            next(task["taskId"] for task in self.tasks(scenes.LOCKS) if task["displayName"] == job.name) for job in jobs
        ]
        assert self.shell.pipe("task", "wait", *ids).code == 0
        return [self.json("task", "get", task_id) for task_id in ids]


@pytest.fixture
def demo_shell(tmp_path: Path) -> Shell:
    """A shell for a demo over a small directory of files, which plays five times as fast."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.py").write_text("print(1)\n")
    data = str(tmp_path / "data")
    environment = {"KAPELL_DATA_DIR": data, "KAPELL_GRPC_ADDRESS": "127.0.0.1:0", "KAPELL_DEMO_PACE": "0.02"}
    return Shell(shell_environment(tmp_path, **environment))


@pytest.fixture
def demo(demo_shell: Shell) -> Iterator[Demo]:
    """The demo, once its budget is near its limit: by then it has asked, and all scenes are played."""
    with running(demo_shell, "--demo") as process:
        read_until(process, "$0.04 of")
        yield Demo(demo_shell, process)


def moment(text: str) -> datetime:
    """A time of JSON, to the microsecond."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))


def money(amount: dict[str, Any]) -> Decimal:
    """An amount of JSON."""
    return Decimal(amount["cost"].get("units", 0)) + Decimal(amount["cost"].get("nanos", 0)).scaleb(-9)


def after_approval(demo: Demo, approval_id: str) -> timedelta:
    """Approves the start of a task, waits for its end, and tells how long after the decision it began."""
    asked = demo.json("approval", "show", approval_id)
    assert demo.shell.pipe("approval", "approve", approval_id).code == 0
    assert demo.shell.pipe("task", "wait", asked["taskId"]).code == 0
    task, decided = demo.json("task", "get", asked["taskId"]), demo.json("approval", "show", approval_id)
    return moment(task["startTime"]) - moment(decided["decisions"][0]["decideTime"])


def test_writers_of_the_same_files_take_turns_and_readers_do_not(demo: Demo) -> None:
    rewrite, mend, read, review = demo.first(scenes.REWRITE, scenes.SUM, scenes.READ, scenes.REVIEW)

    assert moment(mend["createTime"]) < moment(rewrite["endTime"]) <= moment(mend["startTime"])
    assert moment(review["startTime"]) < moment(read["endTime"])
    assert moment(read["startTime"]) < moment(review["endTime"])


def test_usage_agrees_with_a_sum_by_hand(demo: Demo) -> None:
    demo.first(scenes.REWRITE, scenes.SUM, scenes.READ, scenes.REVIEW)
    until = demo.json("event", "list", "-n", "1")[0]["eventTime"]

    records = list(csv.DictReader(io.StringIO(demo.shell.pipe("usage", "export", "--until", until).out)))
    shown = demo.json("usage", "show", "--until", until)

    said = {use.model: use for use in (scenes.WRITER, scenes.DRAFTER, scenes.READER)}
    assert {record["model"] for record in records} == set(said)
    assert all(record["source"] == scenes.SOURCE for record in records)
    for record in records:
        use = said[record["model"]]
        assert (int(record["uncached_input_tokens"]), int(record["output_tokens"])) == (
            use.input_tokens,
            use.output_tokens,
        )
        assert (Decimal(record["cost_usd"]) if record["cost_usd"] else None) == use.cost
    by_hand = sum(said[record["model"]].cost or 0 for record in records)
    assert money(shown["total"]) == by_hand
    assert int(shown["total"]["records"]) == len(records)
    assert int(shown["total"]["unpricedRecords"]) == sum(not record["cost_usd"] for record in records) > 0


def test_the_flood_stops_exactly_at_the_limit_and_goes_on_after_the_answer(demo: Demo) -> None:
    for spent, done in (("0.05", 5), ("0.10", 10)):
        read_until(demo.process, f"${spent} of")
        drafts = demo.tasks(scenes.SPENDING)
        assert demo.shell.pipe("task", "wait", *(task["taskId"] for task in drafts[:done])).code == 0

        budget = demo.json("budget", "get", "demo")
        states = [task["state"] for task in demo.tasks(scenes.SPENDING)]
        assert budget["status"]["state"] == "BUDGET_STATE_AWAITING_APPROVAL"
        assert money(budget["status"]["spent"]) == Decimal(spent)
        assert money(budget["status"]["reserved"]) == 0
        assert states.count("TASK_STATE_SUCCEEDED") == done
        assert states.count("TASK_STATE_QUEUED") == scenes.FLOOD - done
        assert "demo" in demo.shell.pipe("task", "explain", drafts[-1]["taskId"]).out
        assert demo.shell.pipe("budget", "resume", "demo").code == 0

    assert demo.shell.pipe("task", "wait", *(task["taskId"] for task in drafts)).code == 0


def test_a_task_waits_to_be_read_and_goes_on_at_once(demo: Demo) -> None:
    (approval_id,) = demo.shell.pipe("approval", "list", "-o", "id").out.split()

    card = demo.shell.terminal("approval", "show", approval_id, NO_COLOR="1").out

    for line in scenes.PUBLISH.script.splitlines():
        assert line in card
    assert after_approval(demo, approval_id) <= SECOND


def test_what_waits_to_be_read_survives_that_the_server_is_killed(demo: Demo) -> None:
    (approval_id,) = demo.shell.pipe("approval", "list", "-o", "id").out.split()
    psutil.Process(demo.process.pid).children()[0].kill()
    assert demo.process.wait(60) == 1

    with running(demo.shell) as again:
        read_until(again, "Ctrl-C")
        assert demo.shell.pipe("approval", "list", "-o", "id").out.split() == [approval_id]
        assert demo.shell.pipe("task", "run", "--type", "edit", "echo back").code == 0  # Its agents are back.
        assert after_approval(demo, approval_id) <= SECOND
        again.send_signal(signal.SIGINT)
        assert again.wait(60) == 0
    assert left_over(demo.shell) == []


def test_the_demo_again_after_its_server_was_killed_doubles_nothing(demo: Demo) -> None:
    psutil.Process(demo.process.pid).children()[0].kill()
    assert demo.process.wait(60) == 1

    with running(demo.shell, "--demo") as again:
        read_until(again, "will be cancelled")
        names = [agent["displayName"] for agent in demo.json("agent", "list", "--state", "active")]
        approvals = demo.shell.pipe("approval", "list", "-o", "id").out.split()
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=60)

    assert sorted(names) == ["counter", "drafter", "editor", "hasher", "reader", "scribe"]
    assert len(approvals) == 1
    assert left_over(demo.shell) == []


def test_the_demo_leaves_room_for_your_own_tasks(demo: Demo) -> None:
    read_until(demo.process, "$0.05 of")

    counted = demo.shell.pipe("task", "run", "--type", "shell", "wc -l < a.py")
    reviewed = demo.shell.open_terminal("run", "code-review", "--param", "files=a.py", **demo.shell.environment)

    assert counted.out.split() == ["1"]
    assert "a.py: 1 lines" in reviewed.finish().out
    assert reviewed.process.returncode == 0


def test_status_says_first_what_waits_for_you(demo: Demo) -> None:
    read_until(demo.process, "$0.05 of")

    screen = demo.shell.terminal("status", NO_COLOR="1").lines
    piped = demo.shell.pipe("status").out
    told = demo.json("status")

    assert screen[0].startswith("Waits for you: 1 approval, 1 stopped budget")
    assert len(screen) <= 23
    assert max(map(len, screen)) <= 80
    assert any(line.startswith("Spend ") and "$0.05 of $0.05" in line for line in screen)
    assert any(line.startswith("Locks ") and "demo/shop" in line for line in screen)
    assert "\x1b" not in piped
    assert piped.startswith("Waits for you: 1 approval, 1 stopped budget")
    assert [one["title"] for one in told["approvals"]] == [f"Start {scenes.PUBLISH.name}"]
    assert told["budgets"][0]["budgetId"] == scenes.BUDGET_ID
