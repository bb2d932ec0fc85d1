"""The guide for writers of programs says what happens: its example is run."""

from __future__ import annotations

import re
from pathlib import Path

from kapell.v1.agent_pb2 import CommandRuntime

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task, run

GUIDE = Path(__file__).parents[2] / "server" / "docs" / "how-to" / "write-a-program.md"


async def test_example_of_the_guide_does_what_the_guide_says(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    program = tmp_path / "program"
    program.write_text(blocks[0])
    program.chmod(0o755)
    attempt = RecordedAttempt()

    spec = CommandRuntime(argv=[str(program)], stdin="{prompt}")
    result = await run(tmp_path, spec, a_task("three short words"), attempt)

    assert result == {"words": 3}
    assert attempt.stdout == ["task task_one, attempt 1"]
    assert [(fraction, message) for fraction, _, message in attempt.progress_seen] == [
        (0.1, "reading"),
        (0.9, "counted"),
    ]
