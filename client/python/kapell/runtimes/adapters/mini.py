"""mini-swe-agent: `mini --yolo --exit-immediately --output FILE`.

What it prints is for people. The file, its trajectory, is written anew after each step: it has each answer
of the model as litellm gives it, in the shape of OpenAI's, and how the run has ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kapell._worker.outcome import TaskFailed
from kapell.runtimes.adapters.contract import Effect, Say, Step, Use, Verdict
from kapell.runtimes.adapters.reading import SHOWN, cut, failure, part, parts, text, unfinished

_HINT = (
    "set it up with `mini-extra config setup` on this machine, or give the profile the model by --model and the key: "
    'env_from_secret = { OPENAI_API_KEY = "name-of-a-secret" }'
)
_STEP = re.compile(r"mini-swe-agent \(step (\d+), \$[\d.]+\):")
_RULE = re.compile(r"─{20,}\s*")
_MOST_LINES = 10_000
_LIMITS = {
    "LimitsExceeded": ("MAX_BUDGET", "mini has come to its limit of steps or cost - raise step_limit or --cost-limit"),
    "TimeExceeded": ("MAX_BUDGET", "mini has come to its limit of time - raise wall_time_limit_seconds"),
    "RepeatedFormatError": ("AGENT_ERROR", "the model of mini has called no tool, again and again"),
}


def build(argv: Sequence[str]) -> Mini:
    """The adapter for one run."""
    return Mini(_output_of(argv))


class Mini:
    """Reads one run. `record` is its trajectory."""

    def __init__(self, record: str) -> None:
        self.record = record
        self._trajectory: Mapping[str, Any] = {}
        self._is_preamble = False
        self._words: list[str] = []
        self._is_exit = False
        self._is_saved = False

    def feed(self, line: str) -> Iterator[Effect]:
        if _RULE.fullmatch(line):
            self._is_preamble = False
        elif line == "System:" and not self._words:
            # Its own instructions, and the task.
            self._is_preamble = True
        elif found := _STEP.fullmatch(line):
            self._is_preamble, self._is_exit = False, False
            yield Step(f"step {found[1]}")
        elif line == "Exit:":
            self._is_preamble, self._is_exit = False, True
            self._words.clear()
        elif self._is_exit and line.startswith("Saved trajectory to "):
            self._is_saved = True
        elif not self._is_preamble:
            if self._is_exit and len(self._words) < _MOST_LINES:
                self._words.append(line[:SHOWN])
            yield Say(line)

    def take_record(self, said: str) -> None:
        try:
            found = json.loads(said)
        except (ValueError, RecursionError):
            return
        self._trajectory = found if isinstance(found, Mapping) else {}

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        used = list(self._used())
        words = "\n".join(self._words).strip()
        info = part(self._trajectory, "info")
        match text(info, "exit_status"):
            case "Submitted":
                return Verdict(message=text(info, "submission").strip() or words, used=used)
            case ("LimitsExceeded" | "TimeExceeded" | "RepeatedFormatError") as status:
                reason, said = _LIMITS[status]
                return Verdict(used=used, failure=TaskFailed(reason, said))
            case "":
                if self._is_saved and not code:
                    return Verdict(message=words, used=used)
            case status:
                last = part((parts(self._trajectory, "messages") or [{}])[-1], "extra")
                return Verdict(
                    used=used, failure=failure("mini", "mini", text(last, "exception_str") or words or status, _HINT)
                )
        if code and words:
            return Verdict(used=used, failure=failure("mini", "mini", cut(words), _HINT))
        return Verdict(used=used, failure=None if code else unfinished("mini"))

    def _used(self) -> Iterator[Use]:
        """Each answer of the model, also those that it could not use."""
        model = part(part(part(self._trajectory, "info"), "config"), "model")
        for number, message in enumerate(parts(self._trajectory, "messages")):
            extra = part(message, "extra")
            response = part(extra, "response")
            if part(response, "usage"):
                # Small servers count their answers: the time of this one makes its id one of its own.
                record_id = f"mini:{text(response, 'id')}:{extra.get('timestamp', number)}"[:200]
                named = text(response, "model") or text(model, "model_name").rpartition("/")[2]
                yield Use({**response, "model": named}, record_id=record_id)


def _output_of(argv: Sequence[str]) -> str:
    """The file that the command line names by -o or --output; empty where it names none."""
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("-o", "--output"):
            return value if equals else next(iter(argv[position + 1 :]), "")
    return ""
