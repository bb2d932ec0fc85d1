"""Masking of secrets: in texts, messages and streams, wherever the chunks are cut."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell.rules.redaction import MASK, Redactor, StreamRedactor
from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import FailTaskRequest

VALUE = 's3cr3t"\\päss w/rd'
KEY = "-----BEGIN KEY-----\nbG9uZyBlbm91Z2g=\nb\n-----END KEY-----"


def test_a_value_is_masked_in_every_form_that_programs_print() -> None:
    masks = Redactor([VALUE])

    for form in (VALUE, json.dumps(VALUE)[1:-1], json.dumps(VALUE, ensure_ascii=False)[1:-1]):
        assert masks.text(f"<{form}>") == f"<{MASK}>"
    encoded = base64.b64encode(VALUE.encode()).decode()
    assert encoded not in masks.text(f"Basic {encoded}")
    assert "p%C3%A4ss" not in masks.text("token=s3cr3t%22%5Cp%C3%A4ss%20w%2Frd&x=1")


def test_lines_of_a_long_value_are_masked_one_by_one() -> None:
    masks = Redactor([KEY])

    assert [masks.text(line) for line in KEY.split("\n")] == [MASK, MASK, "b", MASK]


def test_a_message_is_masked_wherever_it_holds_text_and_is_never_altered() -> None:
    request = FailTaskRequest(lease_token="t")
    request.failure.message = f"no access with {VALUE}"
    request.failure.details.update({"tried": [VALUE, {"deep": VALUE}], VALUE: 1})
    before = request.SerializeToString()

    masked = Redactor([VALUE]).message(request)

    assert VALUE not in str(masked.failure)
    assert masked.failure.details["tried"][1]["deep"] == MASK
    assert masked.failure.details[MASK] == 1
    assert request.SerializeToString() == before
    untouched = Task(prompt="nothing")
    assert Redactor([VALUE]).message(untouched) is untouched


def test_short_values_and_none_mask_nothing() -> None:
    assert Redactor(["abc", ""]).text("abcabc") == "abcabc"
    assert not Redactor()


@given(st.data())
def test_a_stream_is_masked_wherever_its_chunks_are_cut(data: st.DataObject) -> None:
    values = ["abcabd", "cabdab", "xyxyxz"]
    masks = Redactor(values)
    text = "".join(data.draw(st.lists(st.sampled_from([*values, "ab", "x", "y", "c\n"]), max_size=12)))
    whole = text.encode()
    stream = StreamRedactor(masks)
    written, start = b"", 0
    while start < len(whole):
        size = data.draw(st.integers(1, 5))
        written += stream.feed(whole[start : start + size])
        start += size
    written += stream.finish()

    assert not any(value.encode() in written for value in values)
    if not any(value in text for value in values):
        assert written == whole


def test_what_cannot_be_a_value_is_not_held_back() -> None:
    stream = StreamRedactor(Redactor(["secret-value"]))

    assert stream.feed(b"password: ") == b"password: "
    assert stream.feed(b"password: sec") == b"password: "
    assert stream.feed(b"ond") == b"second"
    assert stream.finish() == b""


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "a-user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_value_within_a_longer_text_in_base64_is_masked(before: str, encode: Callable[[bytes], bytes]) -> None:
    value = "s3cr3t?>~value"
    text = f"Authorization: Basic {encode(f'{before}{value}:x'.encode()).decode()}"

    masked = Redactor([value]).text(text)

    assert "[secret]" in masked
    assert len(masked) < len(text)


def test_a_value_in_hex_is_masked() -> None:
    value = "correct horse"

    assert Redactor([value]).text(f"{value.encode().hex()} {value.encode().hex().upper()}") == "[secret] [secret]"
