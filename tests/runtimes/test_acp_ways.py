"""Ways that real agents have and the protocol leaves open, as tests/agents has met them in real ones."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from kapell.runtimes.placeholders import fill
from kapell_server.config import load

from tests.host.attempts import RecordedAttempt
from tests.runtimes.test_acp import Make, make, notes
from tests.runtimes.test_acp_service import permission
from tests.runtimes.test_conformance import TASK, begun, failure_of

__all__ = ["make"]

GUIDE = Path(__file__).parents[2] / "server/docs/how-to/drive-an-acp-agent.md"


def test_the_profile_of_the_guide_is_one(tmp_path: Path) -> None:
    (tmp_path / "kapell.toml").write_text("".join(re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL)))

    profile = load(flags={}, env={}, directory=tmp_path).profiles["coder"]

    assert list(profile.spec.acp.argv) == ["gemini", "--acp"]
    assert list(profile.spec.workspace.git_worktree.merge.check) == ["make", "test"]


def test_the_permissions_for_opencode_of_the_guide_can_be_filled_in() -> None:
    [told] = re.findall(r"OPENCODE_PERMISSION = '(.*?)'", GUIDE.read_text())

    assert json.loads(fill(told, {})) == {"edit": "ask", "bash": "ask"}


def chunk(text: str, **more: Any) -> list[Any]:
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}, **more}
    return ["update", update]


def counted(**counts: int) -> dict[str, Any]:
    """A Usage of the protocol."""
    return {"inputTokens": 200, "outputTokens": 33, **counts}


def used(attempt: RecordedAttempt) -> list[tuple[object, ...]]:
    names = ("model", "input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")
    return [tuple(one[name] for name in names) for one in attempt.used]


async def test_agent_reads_files_by_itself_and_so_can_make_new_ones(make: Make, tmp_path: Path) -> None:
    await make(["say", "hello"]).run(RecordedAttempt(), TASK)

    told = json.loads(notes(tmp_path)[0].removeprefix("initialize "))
    assert told["clientCapabilities"] == {"fs": {"readTextFile": False, "writeTextFile": True}, "terminal": True}


async def test_message_is_complete_when_permission_is_asked_and_when_a_turn_ends(make: Make) -> None:
    attempt = RecordedAttempt()
    quiet = ["call_quietly", *permission({"title": "ls", "kind": "execute"})[1:]]
    agent = make(["chunk", "I will look"], quiet, ["receive"], ["chunk", "All done"], then=[["chunk", "Understood"]])
    running = begun(agent, attempt)

    await attempt.until_asked()
    before = list(attempt.stdout)
    attempt.decide("deny", "not now")
    result = await running

    assert before == ["I will look"]
    assert (attempt.stdout, result) == (["I will look", "All done", "Understood"], "Understood")


async def test_reason_of_a_refusal_is_a_prompt_of_its_own_when_the_turn_is_over(make: Make) -> None:
    attempt = RecordedAttempt()
    agent = make(permission({"title": "rm -rf build", "kind": "execute"}), then=[["said_prompt"]])
    running = begun(agent, attempt)

    await attempt.until_asked()
    attempt.decide("deny", "use make clean")
    result = str(await running)

    assert result.startswith("A person has refused")
    assert result.endswith("- rm -rf build: use make clean")


@pytest.mark.parametrize("stop", ["end_turn", "cancelled"])
async def test_turn_that_a_refusal_has_ended_goes_on_with_its_reason(make: Make, stop: str) -> None:
    attempt = RecordedAttempt()
    ends = [permission({"title": "ls"}), ["answer", {"result": {"stopReason": stop}}]]
    running = begun(make(*ends, then=[["say", "I see"]]), attempt)

    await attempt.until_asked()
    attempt.decide("deny", "not now")

    assert await running == "I see"


async def test_refusal_without_a_reason_is_no_prompt(make: Make) -> None:
    attempt = RecordedAttempt()
    running = begun(make(permission({"title": "ls"}), then=[["say", "again"]]), attempt)

    await attempt.until_asked()
    attempt.decide("deny")
    await running

    assert "again" not in attempt.stdout


async def test_reason_is_no_prompt_once_the_task_is_cancelled(make: Make, tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    agent = make(permission({"title": "ls"}), ["await_cancel"], then=[["environment", "HOME"]])
    running = begun(agent, attempt)

    await attempt.until_asked()
    attempt.decide("deny", "not now")
    await attempt.until_stdout(1)
    attempt.cancel()
    failure = await failure_of(running)

    assert failure.reason == "CANCELLED"
    assert "tells the agent why it was refused" not in attempt.remarks


async def test_agent_that_is_always_refused_with_a_reason_ends(make: Make) -> None:
    attempt = RecordedAttempt()
    step = permission({"title": "ls"})
    running = begun(make(step, then=[step]), attempt)

    async def refuse() -> None:
        for count in range(1, 100):
            await attempt.until_asked(count)
            attempt.decide("deny", "no")

    refusing = asyncio.create_task(refuse())
    await running
    refusing.cancel()

    assert len(attempt.asked) == 10


async def test_failed_tool_says_why_in_the_log(make: Make) -> None:
    attempt = RecordedAttempt()
    call = {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "Write a.py", "kind": "edit"}
    content = [{"type": "content", "content": {"type": "text", "text": "Error checking\nexisting file"}}]
    failed = {"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "failed", "content": content}

    await make(["update", call], ["update", failed]).run(attempt, TASK)

    assert "failed: edit: Write a.py: Error checking existing file" in attempt.remarks


async def test_title_that_is_a_path_says_what_is_done_with_it(make: Make, tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    shop = tmp_path / "shop"
    shop.mkdir()
    path = f"{shop}/src/a.py"
    step = permission({"title": path, "kind": "edit", "locations": [{"path": path}]})
    running = begun(make(step, profile={"working_directory": str(shop)}), attempt)

    shown = await attempt.until_asked()
    attempt.decide()
    await running

    assert shown["title"] == "edit src/a.py"


@pytest.mark.parametrize(
    ("counts", "tokens"),
    [
        ({}, (200, 0, 33, 0)),
        ({"cachedReadTokens": 50, "thoughtTokens": 3, "totalTokens": 233}, (200, 50, 33, 3)),
        ({"cachedReadTokens": 50, "cachedWriteTokens": 5, "totalTokens": 288}, (255, 50, 33, 0)),
        ({"cachedReadTokens": 50, "thoughtTokens": 3, "totalTokens": 286}, (250, 50, 36, 3)),
        ({"thoughtTokens": 3, "totalTokens": 236}, (200, 0, 36, 3)),
    ],
)
async def test_tokens_of_a_turn_are_counted_whether_parts_are_in_the_whole_or_beside_it(
    make: Make, counts: dict[str, int], tokens: tuple[int, ...]
) -> None:
    attempt = RecordedAttempt()

    await make(["say", "hello"], turn={"usage": counted(**counts)}).run(attempt, TASK)

    assert used(attempt) == [("", *tokens)]


async def test_tokens_of_each_model_are_counted_as_gemini_tells_them(make: Make) -> None:
    attempt = RecordedAttempt()
    models = [{"model": name, "token_count": {"input_tokens": 300, "output_tokens": 43}} for name in ("pro", "flash")]

    await make(["say", "hello"], turn={"_meta": {"quota": {"model_usage": models}}}).run(attempt, TASK)

    assert used(attempt) == [("pro", 300, 0, 43, 0), ("flash", 300, 0, 43, 0)]


async def test_tokens_of_calls_are_counted_instead_of_those_of_the_turn(make: Make) -> None:
    attempt = RecordedAttempt()
    models = {"currentModelId": "$runtime|small", "availableModels": [{"modelId": "$runtime|small", "name": "small"}]}
    new = {"sessionId": "one", "models": models}
    call = chunk("", _meta={"usage": counted()})

    await make(call, ["say", "x"], call, turn={"usage": counted()}, **{"session/new": new}).run(attempt, TASK)

    assert used(attempt) == [("small", 200, 0, 33, 0)] * 2


async def test_cost_of_the_session_is_counted_instead_of_tokens(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(["usage", 0.1], turn={"usage": counted()}).run(attempt, TASK)

    assert [one["update"]["cost"]["amount"] for one in attempt.used] == [0.1]  # type: ignore[index]


async def test_cost_that_is_told_after_tokens_is_not_counted_besides(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(chunk("x", _meta={"usage": counted()}), ["usage", 0.1]).run(attempt, TASK)

    assert used(attempt) == [("", 200, 0, 33, 0)]


async def test_cost_of_nothing_leaves_it_to_the_tokens(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(["usage", 0], turn={"usage": counted()}).run(attempt, TASK)

    assert used(attempt) == [("", 200, 0, 33, 0)]
