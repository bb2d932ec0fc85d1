"""What a program's output and result file say the result is; see ResultFormat in agent.proto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from kapell._worker.outcome import TaskFailed
from kapell._worker.values import to_value
from kapell.runtimes._output import Kept
from kapell.v1.agent_pb2 import RESULT_FORMAT_FILE, RESULT_FORMAT_JSON, ResultFormat

TEXT_BYTES = 64 * 1024
MAX_JSON_BYTES = 256 * 1024


def read(result_format: ResultFormat.ValueType, file: Path, stdout: Kept, *, program: str) -> object:
    """The result of a program that succeeded. Raises TaskFailed with RESULT_INVALID."""
    written = _read_file(file, program)
    if written is not None:
        return _json_or_text(written)
    if result_format == RESULT_FORMAT_FILE:
        return None
    if result_format == RESULT_FORMAT_JSON:
        return _json(stdout, program)
    return stdout.text()


def _read_file(file: Path, program: str) -> bytes | None:
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        _invalid(f"the result file of {program} cannot be read: {error}")
    if len(data) > MAX_JSON_BYTES:
        _invalid(f"{program} wrote a result file of more than {MAX_JSON_BYTES} bytes - write less, or log it")
    return data


def _json_or_text(data: bytes) -> object:
    text = data.decode(errors="replace")
    try:
        return _parse(text)
    except ValueError:
        return text


def _json(stdout: Kept, program: str) -> object:
    if stdout.is_cut:
        _invalid(f"{program} printed {stdout.total} bytes, a JSON result has at most {MAX_JSON_BYTES} - print less")
    text = stdout.text()
    try:
        return _parse(text)
    except ValueError as error:
        shown = f"it printed {text[:200]!r}" if text.strip() else "it printed nothing"
        _invalid(
            f"{program} did not print one JSON value ({error}) - {shown} - "
            "print JSON only, or choose result_format TEXT or FILE"
        )


def _parse(text: str) -> object:
    try:
        value: object = json.loads(text, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    to_value(value)
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _invalid(text: str) -> NoReturn:
    raise TaskFailed("RESULT_INVALID", text)
