"""`kapell queue`, `kapell limit` and `kapell task explain`: what they do, show and refuse."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.cli.queue_views import blocker_detail, blocker_word, limit_text, queue_event, rate_text
from kapell.cli.rates import RATE, Given
from kapell.v1 import queue_pb2, task_pb2

from tests.cli.shell import Shell, compare, forget
from tests.cli.test_completion import tab
from tests.support.server_process import ServerProcess

GUIDE = Path(__file__).resolve().parents[2] / "server/docs/how-to/limit-what-runs.md"


@pytest.fixture(scope="module")
def crowd(shell: Shell) -> Shell:
    """The shell, with tasks that wait for every reason there is without an agent, and with limits."""
    for line in (
        ("limit", "set", "repo:web", "--max", "2", "--rate", "30/1h", "--description", "the checkout"),
        ("limit", "set", "deploy:web", "--strategy", "cancel-in-progress"),
        ("limit", "set", "gpu", "--max", "0"),
        ("queue", "set", "build", "--max-running", "4", "--rate", "10/m"),
        ("queue", "pause", "review", "--reason", "the reviewers are on holiday"),
        ("task", "create", "-t", "build", "--id", "task_free", "--fairness-key", "team-a", "make"),
        ("task", "create", "-t", "build", "--id", "task_gpu", "--concurrency-key", "gpu", "train"),
        ("task", "create", "-t", "review", "--id", "task_paused", "--concurrency-key", "repo:web", "read"),
    ):
        result = shell.pipe(*line)
        assert result.code == 0, (line, result.err)
    return shell


READING = {
    "queue-list": ("queue", "list"),
    "queue-list-wide": ("queue", "list", "-o", "wide"),
    "limit-list": ("limit", "list"),
    "task-explain": ("task", "explain", "task_paused"),
    "task-get-keys": ("task", "get", "task_gpu"),
    "error-limit-not-found": ("limit", "delete", "nobody:set-it"),
}


@pytest.mark.parametrize("name", READING)
def test_transcript(crowd: Shell, name: str) -> None:
    line = READING[name]
    runs = [(" ".join(line), crowd.terminal(*line)), (" ".join((*line, "| cat")), crowd.pipe(*line))]
    text = "\n".join(
        f"$ kapell {shown}\n{run.out}"
        + "".join(f"(stderr) {written}\n" for written in run.err.splitlines())
        + f"[exit {run.code}]\n"
        for shown, run in runs
    )

    text = re.sub(r"(?<=[ \t])\d\.\d(?=[ \t])", "N/S", text)
    compare(name, forget(text, {crowd.environment["KAPELL_DATA_DIR"]: "DATA-DIR"}))


def test_json_is_the_answer_of_the_api(crowd: Shell) -> None:
    [build, review] = json.loads(crowd.pipe("queue", "list", "build", "review", "-o", "json").out)
    limits = json.loads(crowd.pipe("limit", "list", "-o", "json").out)
    explained = json.loads(crowd.pipe("task", "explain", "task_gpu", "-o", "json").out)

    assert (build["depth"], build["queue"]["maxRunning"], build["queue"]["startRate"]["count"]) == ("2", 4, 10)
    assert review["queue"]["state"] == "QUEUE_STATE_PAUSED"
    assert [limit["key"] for limit in limits] == ["gpu", "deploy:web", "repo:web"]
    assert "WAIT_KIND_CONCURRENCY_LIMIT" in [blocker["kind"] for blocker in explained["blockers"]]
    assert explained["task"]["concurrencyKeys"] == ["gpu"]


def test_ids_go_from_list_to_command(crowd: Shell) -> None:
    for key in ("a:1", "a:2"):
        crowd.pipe("limit", "set", key)
    ids = "".join(f"{key}\n" for key in crowd.pipe("limit", "list", "-o", "id").out.split() if key.startswith("a:"))

    unasked = crowd.pipe("limit", "delete", "-", stdin=ids)
    done = crowd.pipe("limit", "delete", "--yes", "-", stdin=ids)

    assert unasked.code == 2
    assert sorted(done.out.split()) == ["a:1", "a:2", "deleted", "deleted"]
    assert crowd.pipe("queue", "list", "build", "-o", "id").out == "build\n"


def test_a_queue_is_paused_resumed_drained_and_set(shell: Shell) -> None:
    def state(*line: str) -> str:
        result = shell.pipe("queue", *line, "-o", "json")
        assert result.code == 0, result.err
        found: str = json.loads(result.out)["state"]
        return found

    assert state("pause", "docs", "--reason", "later") == "QUEUE_STATE_PAUSED"
    assert state("resume", "docs") == "QUEUE_STATE_OPEN"
    assert state("drain", "docs", "--reason", "replaced by docs-2") == "QUEUE_STATE_DRAINING"
    refused = shell.pipe("task", "create", "-t", "docs", "write")
    assert refused.code == 5
    assert "replaced by docs-2" in refused.err
    assert "next: kapell queue resume docs" in refused.err
    assert state("resume", "docs") == "QUEUE_STATE_OPEN"
    limited = json.loads(shell.pipe("queue", "set", "docs", "--max-running", "2", "-o", "json").out)
    lifted = json.loads(shell.pipe("queue", "set", "docs", "--max-running", "none", "-o", "json").out)
    assert (limited["maxRunning"], lifted.get("maxRunning")) == (2, None)
    stale = shell.pipe("queue", "set", "docs", "--rate", "1/1s", "--etag", limited["etag"])
    assert stale.code == 5


@pytest.mark.parametrize(("verb", "state"), [("pause", "PAUSED"), ("drain", "DRAINING")])
def test_all_queues_are_stopped_only_when_that_is_meant(shell: Shell, verb: str, state: str) -> None:
    def now() -> str:
        return str(json.loads(shell.pipe("queue", "resume", "--dry-run", "-o", "json").out)["state"])

    refused = shell.pipe("queue", verb)
    screen = shell.open_terminal("queue", verb)
    screen.expect(rf"{verb.capitalize()} all queues\?")
    screen.type("n\n")

    assert refused.code == 2
    assert "--yes" in refused.err
    assert screen.finish().code == 1
    assert shell.pipe("queue", verb, "build", "--all").code == 2
    assert now() == "QUEUE_STATE_OPEN"
    for said in ("--yes", "--all"):
        assert shell.pipe("queue", verb, said).code == 0
        assert now() == f"QUEUE_STATE_{state}"
        assert shell.pipe("queue", "resume").code == 0


def test_a_change_is_told_in_a_line(shell: Shell) -> None:
    paused = shell.terminal("queue", "pause", "lint", "--reason", "later", NO_COLOR="1")
    limit = shell.terminal("limit", "set", "lint:all", "--max", "3", "--rate", "5/10s", NO_COLOR="1")

    assert paused.out.split() == ["‖", "paused", "lint", "later"]
    assert limit.out == "lint:all  3 at a time, others wait, starts 5/10s\n"


def test_a_dry_run_changes_nothing(crowd: Shell) -> None:
    before = crowd.pipe("event", "list", "-n", "1", "-o", "json").out
    for line in (
        ("queue", "pause", "build"),
        ("queue", "resume"),
        ("queue", "drain", "build"),
        ("queue", "set", "build", "--rate", "none"),
        ("limit", "set", "gpu", "--max", "3"),
        ("limit", "delete", "gpu"),
    ):
        result = crowd.pipe(*line, "--dry-run")

        assert (result.code, "Nothing was changed." in result.err) == (0, True), (line, result.err)
    assert crowd.pipe("event", "list", "-n", "1", "-o", "json").out == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("queue", "set", "build"), "Nothing to change: give --max-running or --rate"),
        (("queue", "set", "build", "--max-running", "many"), "'many' is not a number; write for example 4, or none"),
        (("queue", "set", "build", "--rate", "fast"), "'fast' is not a rate; write for example 10/1m, 30/1h or none"),
        (("queue", "set", "build", "--rate", "10/soon"), "is not a rate"),
        (("queue", "set", "build", "--rate", "10/2d"), "--rate: must be"),
        (("queue", "pause", "No Spaces"), "TYPE: must be '*', or 1 to 63 of a-z"),
        (("limit", "set", "a b"), "KEY: must be 1 to 63 of"),
        (("limit", "set", "a", "--strategy", "cancel"), "cancel-in-progress"),
        (("task", "create", "-t", "build", "--concurrency-key", "a b", "make"), "--concurrency-key: must be"),
        (("task", "create", "-t", "build", "--fairness-key", "a b", "make"), "--fairness-key: must be"),
    ],
)
def test_what_is_wrong_is_a_usage_error_that_names_it(shell: Shell, line: tuple[str, ...], words: str) -> None:
    result = shell.pipe(*line)

    assert result.code == 2
    assert words in result.err


def test_a_task_that_is_not_there_cannot_be_explained(shell: Shell) -> None:
    result = shell.pipe("task", "explain", "task_nobody_knows")

    assert result.code == 3
    assert "next: kapell task list" in result.err


def test_events_of_queues_and_limits_are_readable(crowd: Shell) -> None:
    piped = crowd.pipe("event", "list", "--kind", "queue.updated", "--kind", "limit.updated", "--oldest").out

    rows = [line.split("\t")[2:6] for line in piped.splitlines()]
    assert ["limit.updated", "repo:web", "max 2", "2 at a time, others wait, starts 30/1h"] in rows
    assert ["queue.updated", "review", "paused", "paused  the reviewers are on holiday"] in rows


def test_status_names_paused_queues_in_which_tasks_wait(crowd: Shell) -> None:
    screen = crowd.terminal("status", NO_COLOR="1").out
    waits = json.loads(crowd.pipe("status", "-o", "json").out)["waitsForYou"]

    assert "Queue 'review' is paused: the reviewers are on holiday (1 task)" in waits
    assert re.search(r"\d paused queue", screen.splitlines()[0])
    assert "kapell queue resume review" in screen


def test_status_names_queues_that_were_stopped_though_nothing_waits_in_them(shell: Shell) -> None:
    def told() -> tuple[str, list[str], list[str]]:
        picture = json.loads(shell.pipe("status", "-o", "json").out)
        commands = [entry["resumeCommand"] for entry in picture["stoppedQueues"]]
        return shell.terminal("status", NO_COLOR="1").out, picture["waitsForYou"], commands

    shell.pipe("queue", "drain", "idle", "--reason", "replaced by idle-2")
    screen, waits, commands = told()
    assert "Queue 'idle' is draining: replaced by idle-2" in waits
    assert "kapell queue resume idle" in commands
    assert "1 draining queue" in screen.splitlines()[0]

    shell.pipe("queue", "resume", "idle")
    shell.pipe("queue", "pause", "--all")
    screen, waits, commands = told()
    assert waits[0].startswith("All queues are paused")
    assert commands[0] == "kapell queue resume"

    shell.pipe("queue", "resume")
    assert "kapell queue resume" not in told()[2]


def test_types_and_keys_are_completed_live(crowd: Shell) -> None:
    assert tab(crowd, "kapell queue pause bui") == ["build"]
    assert "gpu" in tab(crowd, "kapell limit delete g")
    assert tab(crowd, "kapell limit set repo:w")[-1:] in (["repo:web"], ["web"])


def test_every_command_of_the_guide_works(no_server: Shell, server_process: ServerProcess) -> None:
    environment = {**no_server.environment, "KAPELL_DATA_DIR": str(server_process.data_dir)}
    script = "".join(re.findall(r"(?ms)^```sh\n(.*?)^```$", GUIDE.read_text(encoding="utf-8")))

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, timeout=100
    )

    assert done.returncode == 0, done.stderr
    assert "No agent that serves build is active." in done.stdout


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10/1m", (10, 60.0)), ("10/m", (10, 60.0)), ("30/1h30m", (30, 5400.0)), ("3/10", (3, 10.0)), ("none", None)],
)
def test_rates_are_read(text: str, rate: tuple[int, float] | None) -> None:
    assert RATE.convert(text, None, None) == Given(rate)


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [(10, 60, "10/1m"), (30, 3600, "30/1h"), (5, 86400, "5/1d"), (2, 90, "2/90s"), (1, 10, "1/10s")],
)
def test_rates_are_written_as_they_are_typed(count: int, seconds: int, text: str) -> None:
    rate = queue_pb2.StartRate(count=count)
    rate.period.seconds = seconds

    assert rate_text(rate) == text


def test_blockers_are_told_for_people() -> None:
    many = task_pb2.Blocker(
        kind=task_pb2.WAIT_KIND_CONCURRENCY_LIMIT, blocked_by=["task_a", "task_b", "task_c", "task_d"]
    )
    until = task_pb2.Blocker(kind=task_pb2.WAIT_KIND_START_RATE, until_time=Timestamp(seconds=86400))

    assert blocker_detail(many) == "task_a, task_b, task_c and 1 more"
    assert blocker_detail(until).startswith("until 1970-01-0")
    assert blocker_word(task_pb2.Blocker(kind=999)) == "999"  # type: ignore[arg-type]


def test_limits_and_queues_are_told_for_people() -> None:
    limit = queue_pb2.ConcurrencyLimit(key="a", strategy=queue_pb2.CONCURRENCY_STRATEGY_SKIP)
    queue = queue_pb2.Queue(agent_type="a", state=queue_pb2.QUEUE_STATE_OPEN, max_running=3)

    assert limit_text(limit) == "1 at a time, others are skipped"
    assert queue_event(queue) == "open  3 at a time"
