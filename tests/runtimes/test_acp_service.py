"""What an ACP agent asks for: permission, files and terminals, and how far it gets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kapell._locks.environment import KnownLock
from kapell.v1.agent_pb2 import ACP_PERMISSIONS_ALLOW_READS, ACP_PERMISSIONS_DENY

from tests.host.attempts import RecordedAttempt
from tests.runtimes.test_acp import Make, make, patient
from tests.runtimes.test_conformance import TASK, begun, failure_of, is_running

__all__ = ["make"]

OPTIONS = [
    {"optionId": "Proceed Always", "name": "Always allow", "kind": "allow_always"},
    {"optionId": "proceed_once", "name": "Allow once", "kind": "allow_once"},
    {"optionId": "cancel", "name": "No", "kind": "reject_once"},
]


def permission(call: dict[str, Any], options: list[dict[str, str]] | None = None) -> list[Any]:
    """The step that asks for leave of a tool call, and says the answer."""
    given = {"toolCall": {"toolCallId": "1", **call}, "options": OPTIONS if options is None else options}
    return ["call", "session/request_permission", given]


def said(attempt: RecordedAttempt) -> list[Any]:
    """What the agent was answered."""
    return [json.loads(line) for line in attempt.stdout]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A git repository to work in."""
    directory = tmp_path / "shop"
    directory.mkdir()
    subprocess.run(["git", "init", "-q", str(directory)], check=True)
    (directory / "a.py").write_text("one\ntwo\nthree\n")
    return directory


# -- permissions ---------------------------------------------------------------------------


async def test_permission_is_an_approval_that_shows_command_paths_and_diff(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    change = {"type": "diff", "path": f"{shop}/a.py", "oldText": "one\ntwo\n", "newText": "one\n2\n"}
    call = {
        "title": "sed -i s/two/2/ a.py",
        "kind": "execute",
        "rawInput": {"command": ["sed", "-i", "s/two/2/", "a b.py"], "url": "https://example.com:8080/x"},
        "content": [change],
        "locations": [{"path": f"{shop}/a.py"}],
    }
    running = begun(make(permission(call), profile={"working_directory": str(shop)}), attempt)

    shown = await attempt.until_asked()
    attempt.decide("approve", "go on")
    await running

    assert shown["title"] == "sed -i s/two/2/ a.py"
    assert shown["tool"] == "execute"
    assert shown["command"] == "sed -i s/two/2/ 'a b.py'"
    assert shown["paths"] == [f"{shop}/a.py"]
    assert shown["hosts"] == ["example.com"]
    assert str(shown["diff"]).splitlines()[-2:] == ["-two", "+2"]
    assert shown["workspace"] == str(shop)
    assert (shown["options"], shown["remember"]) == ({"proceed-always": "Always allow"}, ["proceed-always"])
    assert said(attempt)[0]["outcome"] == {"outcome": "selected", "optionId": "proceed_once"}


async def test_what_was_told_of_the_tool_call_before_is_shown(make: Make) -> None:
    attempt = RecordedAttempt()
    told = {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "rm -rf /srv", "kind": "execute"}
    running = begun(make(["update", told], permission({})), attempt)

    shown = await attempt.until_asked()
    attempt.decide("deny")
    await running

    assert (shown["title"], shown["command"]) == ("rm -rf /srv", "rm -rf /srv")


@pytest.mark.parametrize(
    ("option", "chosen"), [("approve", "proceed_once"), ("proceed-always", "Proceed Always"), ("deny", "cancel")]
)
async def test_each_decision_is_an_answer_that_the_agent_has_offered(make: Make, option: str, chosen: str) -> None:
    attempt = RecordedAttempt()
    attempt.decide(option, "because")

    await make(permission({"title": "x"})).run(attempt, TASK)

    [answer] = said(attempt)
    assert answer["outcome"] == {"outcome": "selected", "optionId": chosen}
    assert answer["_meta"] == {"kapell.dev/reason": "because"}


@pytest.mark.parametrize("options", [[], OPTIONS[:2]])
async def test_refusal_that_the_agent_does_not_offer_is_a_cancelled_request(make: Make, options: list[Any]) -> None:
    attempt = RecordedAttempt()
    attempt.decide("deny")

    await make(permission({"title": "x"}, options)).run(attempt, TASK)

    assert said(attempt)[0]["outcome"] == {"outcome": "cancelled"}


async def test_approval_of_what_the_agent_cannot_be_told_is_none(make: Make) -> None:
    attempt = RecordedAttempt()
    attempt.decide("approve")

    await make(permission({"title": "x"}, OPTIONS[2:])).run(attempt, TASK)

    assert said(attempt)[0]["outcome"] == {"outcome": "selected", "optionId": "cancel"}
    assert any("no way to go on" in remark for remark in attempt.remarks)


async def test_what_approving_means_is_said_where_it_is_more_than_once(make: Make) -> None:
    attempt = RecordedAttempt()
    attempt.decide("approve")

    await make(permission({"title": "x"}, [OPTIONS[0], OPTIONS[2]])).run(attempt, TASK)

    assert "approving means: Always allow" in str(attempt.asked[0]["details"])
    assert said(attempt)[0]["outcome"]["optionId"] == "Proceed Always"


async def test_cancelled_task_cancels_the_request(make: Make) -> None:
    attempt = RecordedAttempt()
    running = begun(make(permission({"title": "x"}), ["say", "it knows"], profile=patient()), attempt)
    await attempt.until_asked()

    attempt.cancel()
    failure = await failure_of(running)

    assert failure.reason == "CANCELLED"
    assert json.loads(attempt.stdout[0])["outcome"] == {"outcome": "cancelled"}
    assert attempt.stdout[1] == "it knows"


async def test_agent_that_dies_while_it_waits_leaves_no_request_behind(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    given = {"toolCall": {"toolCallId": "1", "title": "x"}, "options": OPTIONS}
    steps: list[list[Any]] = [
        ["call_quietly", "session/request_permission", given],
        ["read_pipe", f"{shop}/asked"],
        ["crash"],
    ]
    os.mkfifo(shop / "asked")
    running = begun(make(*steps, profile={"working_directory": str(shop)}), attempt)
    await attempt.until_asked()
    open_requests = {task for task in asyncio.all_tasks() if task.get_name() == "acp.Connection.request"}

    await asyncio.to_thread((shop / "asked").write_text, "yes")
    failure = await failure_of(running)

    assert failure.reason == "SIGNAL"
    assert open_requests
    assert all(task.done() for task in open_requests)


@pytest.mark.parametrize(
    "call",
    [
        {"kind": "execute", "rawInput": {"command": "echo " + "x" * 70_000 + "; rm -rf /"}},
        {"kind": "edit", "locations": [{"path": f"/srv/{number}"} for number in range(201)]},
        {"kind": "edit", "locations": [{"path": "/" + "x" * 2_000}]},
    ],
)
async def test_what_nobody_could_see_is_refused(make: Make, call: dict[str, Any]) -> None:
    attempt = RecordedAttempt()

    await make(permission({"title": "x", **call})).run(attempt, TASK)

    assert said(attempt)[0]["outcome"]["optionId"] == "cancel"
    assert not attempt.asked


async def test_agent_that_asks_too_much_at_once_is_told_so(make: Make) -> None:
    attempt = RecordedAttempt()
    given = {"toolCall": {"toolCallId": "1", "title": "x"}, "options": OPTIONS}
    many = [["call_quietly", "session/request_permission", given]] * 64
    running = begun(make(*many, ["call", "of/tomorrow", {}], ["await_cancel"]), attempt)
    await attempt.until_stdout(1)

    attempt.cancel()
    await failure_of(running)

    assert "more than 64 requests" in attempt.stdout[0]


async def test_agent_that_reads_nothing_any_more_is_ended(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    (shop / "large").write_text("x" * 1_000_000)
    given = {"toolCall": {"toolCallId": "1", "title": "x"}, "options": OPTIONS}
    steps: list[list[Any]] = [
        ["call_quietly", "session/request_permission", given],
        *[["call_quietly", "fs/read_text_file", {"path": f"{shop}/large"}]] * 3,
        ["hang"],
    ]
    running = begun(make(*steps, profile={"working_directory": str(shop)}), attempt)
    await attempt.until_stdout(1)
    await attempt.until_asked()

    attempt.cancel()
    failure = await failure_of(running)

    assert failure.reason == "CANCELLED"


async def test_profile_that_denies_asks_nobody(make: Make) -> None:
    attempt = RecordedAttempt()
    steps = (
        permission({"title": "x", "kind": "read"}),
        ["call", "fs/write_text_file", {"path": "/tmp/x", "content": ""}],
        ["call", "terminal/create", {"command": "true"}],
    )

    await make(*steps, profile={"permissions": ACP_PERMISSIONS_DENY}).run(attempt, TASK)

    asked, written, ran = said(attempt)
    assert asked["outcome"]["optionId"] == "cancel"
    assert "may not write" in written["message"]
    assert ran["code"] == -32601
    assert not attempt.asked


async def test_reads_in_the_working_directory_may_be_allowed_by_the_profile(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    inside, outside = {"path": f"{shop}/a.py"}, {"path": "/etc/passwd"}
    (shop / "link").symlink_to("/etc")
    calls: list[dict[str, Any]] = [
        {"title": "in", "kind": "read", "locations": [inside]},
        {"title": "out", "kind": "read", "locations": [inside, outside]},
        {"title": "by input", "kind": "search", "locations": [inside], "rawInput": {"deep": [{"path": "../../x"}]}},
        {"title": "by a link", "kind": "search", "locations": [inside], "rawInput": {"path": "link/passwd"}},
        {"title": "nowhere", "kind": "read"},
        {"title": "edit", "kind": "edit", "locations": [inside]},
        {"title": "command", "kind": "read", "locations": [inside], "rawInput": {"command": "cat a.py"}},
    ]
    steps = [permission({**call, "toolCallId": str(number)}) for number, call in enumerate(calls)]
    for _ in calls[1:]:
        attempt.decide("deny")

    profile = {"permissions": ACP_PERMISSIONS_ALLOW_READS, "working_directory": str(shop)}
    await make(*steps, profile=profile).run(attempt, TASK)

    assert [shown["title"] for shown in attempt.asked] == [call["title"] for call in calls[1:]]
    assert said(attempt)[0]["outcome"]["optionId"] == "proceed_once"


# -- files ---------------------------------------------------------------------------------


async def test_files_of_the_working_directory_are_read_and_written(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    steps: list[list[Any]] = [
        ["call", "fs/read_text_file", {"path": f"{shop}/a.py"}],
        ["call", "fs/read_text_file", {"path": f"{shop}/a.py", "line": 2, "limit": 1}],
        ["call", "fs/write_text_file", {"path": f"{shop}/new/b.py", "content": "b\n"}],
        ["call", "fs/write_text_file", {"path": f"{shop}/a.py", "content": "1\n"}],
        ["call", "fs/read_text_file", {"path": f"{shop}/missing"}],
        ["call", "fs/read_text_file", {"path": str(shop)}],
    ]

    await make(*steps, profile={"working_directory": str(shop)}).run(attempt, TASK)

    whole, second, *_, missing, directory = said(attempt)
    assert (whole, second) == ({"content": "one\ntwo\nthree\n"}, {"content": "two\n"})
    assert ((shop / "new/b.py").read_text(), (shop / "a.py").read_text()) == ("b\n", "1\n")
    assert (missing["code"], directory["message"]) == (-32002, f"{shop} is no file")


@pytest.mark.parametrize(
    "path", ["a.py", "{shop}/../out", "{shop}/link/out", "{shop}/file", "/etc/passwd", "{shop}2/x"]
)
async def test_nothing_outside_of_the_working_directory_is_touched(make: Make, shop: Path, path: str) -> None:
    attempt = RecordedAttempt()
    outside = shop.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (shop / "link").symlink_to(outside)
    (shop / "file").symlink_to(outside / "secret")
    given = {"path": path.format(shop=shop), "content": "mine"}
    steps: list[list[Any]] = [["call", "fs/write_text_file", given], ["call", "fs/read_text_file", given]]

    await make(*steps, profile={"working_directory": str(shop)}).run(attempt, TASK)

    assert all(
        "outside of the working directory" in one["message"] or "no absolute" in one["message"] for one in said(attempt)
    )
    assert {file.name: file.read_text() for file in outside.iterdir()} == {"secret": "secret"}


async def test_pipe_that_never_ends_is_no_file(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    os.mkfifo(shop / "pipe")
    given = {"path": f"{shop}/pipe", "content": "x"}
    steps: list[list[Any]] = [["call", "fs/read_text_file", given], ["call", "fs/write_text_file", given]]

    await make(*steps, profile={"working_directory": str(shop)}).run(attempt, TASK)

    assert all("pipe" in one["message"] for one in said(attempt))


async def test_write_asks_for_the_lock_of_the_file_and_of_where_it_leads(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt(foreign_locks={"shop/b.py": "task_two"})
    (shop / "alias.py").symlink_to(shop / "b.py")
    steps: list[list[Any]] = [
        ["call", "fs/write_text_file", {"path": f"{shop}/alias.py", "content": "x"}],
        ["call", "fs/write_text_file", {"path": f"{shop}/c.py", "content": "x"}],
    ]

    await make(*steps, profile={"working_directory": str(shop)}).run(attempt, TASK)

    refused, written = said(attempt)
    assert "shop/b.py is locked by task_two" in refused["message"]
    assert written == {}
    assert attempt.checked == [{"shop/alias.py", "shop/b.py"}, {"shop/c.py"}]
    assert not (shop / "b.py").exists()


async def test_task_with_locks_writes_nothing_where_nobody_knows_the_lock_paths(make: Make, tmp_path: Path) -> None:
    lock = KnownLock(path="shop", mode="exclusive", lock_id="lock_1", fencing_token=7)
    attempt = RecordedAttempt(locks=[lock])
    plain = tmp_path / "plain"
    plain.mkdir()
    step = ["call", "fs/write_text_file", {"path": f"{plain}/a", "content": "x"}]

    await make(step, profile={"working_directory": str(plain)}).run(attempt, TASK)
    named = {"working_directory": str(plain), "env": {"KAPELL_LOCK_PREFIX": "shop"}}
    await make(step, profile=named).run(attempt, TASK)

    refused, written = said(attempt)
    assert "KAPELL_LOCK_PREFIX" in refused["message"]
    assert written == {}
    assert attempt.checked == [{"shop/a"}]


# -- terminals -----------------------------------------------------------------------------


async def test_terminal_runs_a_command_and_keeps_the_end_of_its_output(make: Make, shop: Path) -> None:
    attempt = RecordedAttempt()
    name = {"terminalId": "terminal-1"}
    steps: list[list[Any]] = [
        ["call", "terminal/create", {"command": "seq 3; echo $X; pwd; exit 4", "env": [{"name": "X", "value": "y"}]}],
        ["call", "terminal/wait_for_exit", name],
        ["call", "terminal/output", name],
        ["call", "terminal/release", name],
        ["call", "terminal/output", name],
        ["call", "terminal/create", {"command": "seq", "args": ["1000"], "outputByteLimit": 9}],
        ["call", "terminal/wait_for_exit", {"terminalId": "terminal-2"}],
        ["call", "terminal/output", {"terminalId": "terminal-2"}],
        ["call", "terminal/create", {"command": "of-tomorrow", "args": ["x"]}],
    ]

    await make(*steps, profile={"working_directory": str(shop)}).run(attempt, TASK)

    told = [json.loads(line) for line in attempt.stdout if line.startswith("{")]
    created, ended, output, released, gone, _, _, cut, missing = told
    assert (created, ended, released) == (name, {"exitCode": 4, "signal": None}, {})
    assert output == {"output": f"1\n2\n3\ny\n{shop}", "truncated": False, "exitStatus": ended}
    assert "no terminal" in gone["message"]
    assert (cut["output"], cut["truncated"]) == ("999\n1000", True)
    assert "of-tomorrow" in missing["message"]


async def test_no_command_runs_while_a_lock_of_the_task_is_lost(make: Make, shop: Path) -> None:
    lock = KnownLock(path="shop", mode="exclusive", lock_id="lock_1", fencing_token=7)
    attempt = RecordedAttempt(locks=[lock], lost_locks="the lock was lost")
    step = ["call", "terminal/create", {"command": "touch ran"}]

    await make(step, profile={"working_directory": str(shop)}).run(attempt, TASK)

    assert "no command may run: the lock was lost" in said(attempt)[0]["message"]
    assert not (shop / "ran").exists()


async def test_killed_terminal_leaves_nothing(make: Make) -> None:
    attempt = RecordedAttempt()
    name = {"terminalId": "terminal-1"}
    steps: list[list[Any]] = [
        ["call", "terminal/create", {"command": "setsid sleep 300 & echo $!; wait"}],
        ["call_quietly", "terminal/wait_for_exit", name],
        ["call", "of/tomorrow", {}],
        ["await_cancel"],
    ]
    running = begun(make(*steps), attempt)
    while not (pids := [line for line in attempt.stdout if line.isdigit()]):
        await attempt.until_stdout(len(attempt.stdout) + 1)

    attempt.cancel()
    await failure_of(running)

    assert [is_running(pid) for pid in pids] == [False]


async def test_terminal_begins_inside_and_no_more_than_a_few_are_open(make: Make) -> None:
    attempt = RecordedAttempt()
    outside = ["call", "terminal/create", {"command": "true", "cwd": "/"}]
    many = [["call", "terminal/create", {"command": "sleep 300"}]] * 17

    await make(outside, *many).run(attempt, TASK)

    answers = [json.loads(line) for line in attempt.stdout]
    assert "outside of the working directory" in answers[0]["message"]
    assert answers[16] == {"terminalId": "terminal-16"}
    assert "16 terminals are open already" in answers[17]["message"]
