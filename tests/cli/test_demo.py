"""What `kapell up --demo` shows of locks, money and questions: each claim, on a demo of the test's own."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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
        found: list[dict[str, Any]] = self.json(
            "task", "list", "--oldest", "-n", "200", "--label", f"demo.scene={scene.name}"
        )
        return found

    def asked(self, kind: str) -> str:
        """The one approval of this kind that waits."""
        (found,) = [one for one in self.json("approval", "list") if one["kind"] == f"APPROVAL_KIND_{kind}"]
        return str(found["approvalId"])

    def first(self, *jobs: scenes.Job) -> list[dict[str, Any]]:
        """The first tasks of these jobs, after their end."""
        ids = [
            next(task["taskId"] for task in self.tasks(scenes.LOCKS) if task["displayName"] == job.name) for job in jobs
        ]
        assert self.shell.pipe("task", "wait", *ids).code == 0
        return [self.json("task", "get", task_id) for task_id in ids]


def shell_in(directory: Path) -> Shell:
    """A shell for a demo over a small directory of files, which plays five times as fast."""
    (directory / "files").mkdir()
    (directory / "files" / "a.py").write_text("print(1)\n")
    data = str(directory / "data")
    environment = {"KAPELL_DATA_DIR": data, "KAPELL_GRPC_ADDRESS": "127.0.0.1:0", "KAPELL_DEMO_PACE": "0.02"}
    return Shell(shell_environment(directory, **environment))


@contextmanager
def playing(shell: Shell) -> Iterator[Demo]:
    """The demo, once its flood was stopped: by then it has asked, and all scenes are played."""
    with running(shell, "--demo") as process:
        read_until(process, "$0.05 of")
        yield Demo(shell, process)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo for tests that do not look at what others answer."""
    with playing(shell_in(tmp_path_factory.mktemp("demo"))) as demo:
        yield demo


@pytest.fixture
def own_demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo of the test's own."""
    with playing(shell_in(tmp_path)) as demo:
        yield demo


def moment(text: str) -> datetime:
    """A time of JSON, to the microsecond."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))


def money(amount: dict[str, Any]) -> Decimal:
    """An amount of JSON."""
    return Decimal(amount["cost"].get("units", 0)) + Decimal(amount["cost"].get("nanos", 0)).scaleb(-9)


def after_approval(demo: Demo, approval_id: str) -> timedelta:
    """Approves the start of a task, waits for its end, and tells how long after the decision it began."""
    asked = demo.json("approval", "show", approval_id)
    assert demo.shell.pipe("approval", "approve", approval_id, "--yes").code == 0
    assert demo.shell.pipe("task", "wait", asked["taskId"]).code == 0
    task, decided = demo.json("task", "get", asked["taskId"]), demo.json("approval", "show", approval_id)
    return moment(task["startTime"]) - moment(decided["decisions"][0]["decideTime"])


def killed(demo: Demo) -> str:
    """Kills the server; where it was, and will be looked for by its agents."""
    data = Path(demo.shell.environment["KAPELL_DATA_DIR"])
    address: str = json.loads((data / "server.json").read_text())["grpc_address"]
    psutil.Process(demo.process.pid).children()[0].kill()
    assert demo.process.wait(60) == 1
    return address


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
        assert record["cost_usd"] == ("unpriced" if use.cost is None else f"{use.cost}")
    by_hand = sum(said[record["model"]].cost or 0 for record in records)
    assert money(shown["total"]) == by_hand
    assert int(shown["total"]["records"]) == len(records)
    assert int(shown["total"]["unpricedRecords"]) == sum(record["cost_usd"] == "unpriced" for record in records) > 0


def test_the_flood_stops_exactly_at_the_limit_and_goes_on_after_the_answer(demo: Demo) -> None:
    for spent, done in (("0.05", 5), ("0.10", 10)):
        if done > 5:
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
        assert demo.shell.pipe("approval", "approve", demo.asked("BUDGET")).code == 0

    assert demo.shell.pipe("task", "wait", *(task["taskId"] for task in drafts)).code == 0


def test_a_task_waits_to_be_read_and_goes_on_at_once(demo: Demo) -> None:
    approval_id = demo.asked("TASK_START")

    card = demo.shell.terminal("approval", "show", approval_id, NO_COLOR="1").out

    for line in scenes.PUBLISH.script.splitlines():
        assert re.sub(r"\s", "", line) in re.sub(r"[\s│]", "", card)  # Lines are wrapped, never cut.
    assert after_approval(demo, approval_id) <= SECOND


def test_what_waits_to_be_read_survives_that_the_server_is_killed(own_demo: Demo) -> None:
    approval_id = own_demo.asked("TASK_START")

    with running(own_demo.shell, "--grpc-address", killed(own_demo)) as again:
        read_until(again, "Ctrl-C")
        assert own_demo.asked("TASK_START") == approval_id
        assert own_demo.shell.pipe("task", "run", "--type", "edit", "echo back").code == 0  # Its agents are back.
        assert after_approval(own_demo, approval_id) <= SECOND
        again.send_signal(signal.SIGINT)
        assert again.wait(60) == 0
    assert left_over(own_demo.shell) == []


def test_the_demo_again_after_its_server_was_killed_doubles_nothing(own_demo: Demo) -> None:
    with running(own_demo.shell, "--demo", "--grpc-address", killed(own_demo)) as again:
        read_until(again, "Ctrl-C")
        for agent_type in ("shell", "edit", "draft"):
            assert own_demo.shell.pipe("task", "run", "--type", agent_type, "true").code == 0
        assert own_demo.shell.pipe("run", "code-review", "--param", "files=a.py").code == 0
        names = [agent["displayName"] for agent in own_demo.json("agent", "list", "--state", "active")]
        own_demo.asked("TASK_START")
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=60)

    assert sorted(names) == ["counter", "drafter", "editor", "hasher", "reader", "scribe"]
    assert left_over(own_demo.shell) == []


def test_the_demo_leaves_room_for_your_own_tasks(demo: Demo) -> None:
    counted = demo.shell.pipe("task", "run", "--type", "shell", "wc -l < a.py")
    reviewed = demo.shell.terminal("run", "code-review", "--param", "files=a.py")

    assert counted.out.split() == ["1"]
    assert "a.py: 1 lines" in reviewed.out
    assert reviewed.code == 0


def test_status_says_first_what_waits_for_you(own_demo: Demo) -> None:
    screen = own_demo.shell.terminal("status", NO_COLOR="1").lines
    piped = own_demo.shell.pipe("status").out
    told = own_demo.json("status")

    assert screen[0].startswith("Waits for you: 2 approvals")
    assert len(screen) <= 23
    assert max(map(len, screen)) <= 80
    assert any(line.startswith("Spend ") and "$0.05 of $0.05" in line for line in screen)
    assert any(line.startswith("Locks ") and "demo/shop" in line for line in screen)
    assert "\x1b" not in piped
    assert piped.startswith("Waits for you: 2 approvals")
    assert f"Start {scenes.PUBLISH.name}" in [one["title"] for one in told["approvals"]]
    assert told["budgets"][0]["budgetId"] == scenes.BUDGET_ID
