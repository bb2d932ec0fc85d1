"""The table of reasons and the form of a failure."""

from __future__ import annotations

import errno

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from kapell.v1 import error_pb2
from kapell_server.domain.errors import KapellError
from kapell_server.rpc.status import (
    MAX_DETAIL_BYTES,
    MAX_TEXT_BYTES,
    TABLE,
    as_kapell_error,
    status_of,
)

REASONS = [number for number in error_pb2.ErrorReason.values() if number]
# The code that the comment of each reason in error.proto promises.
DOCUMENTED = {
    "INVALID_ARGUMENT": {1, 2, 3, 41, 54},
    "UNAUTHENTICATED": {4, 5, 100},
    "PERMISSION_DENIED": {6, 7, 97, 99, 103},
    "NOT_FOUND": {8, 9, 10, 11, 40, 51, 60, 70, 84, 85, 90, 92, 93, 94, 95, 101, 105},
    "ALREADY_EXISTS": {12, 88, 96},
    "FAILED_PRECONDITION": {13, 14, 15, 42, 43, 50, 55, 65, 73, 82},
    "ABORTED": {16, 17, 71, 80, 81, 83, 98},
    "OUT_OF_RANGE": {18, 19, 20, 72},
    "RESOURCE_EXHAUSTED": {21, 22, 23, 24, 25, 56, 61, 74, 79, 86, 87, 91, 102, 104, 106, 113},
    "UNAVAILABLE": {26, 27},
    "DEADLINE_EXCEEDED": {28},
    "INTERNAL": {29},
}


def detail(status: status_pb2.Status, kind: type) -> object | None:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            return kind.FromString(packed.value)
    return None


def test_every_reason_has_the_documented_code() -> None:
    codes = {name: {reason for reason, row in TABLE.items() if row.code.name == name} for name in DOCUMENTED}

    assert set(TABLE) == set(REASONS)
    assert codes == DOCUMENTED


@pytest.mark.parametrize("reason", REASONS)
def test_a_failure_has_one_error_info_and_stays_within_its_caps(
    reason: error_pb2.ErrorReason.ValueType,
) -> None:
    endless = "ä" * 5000
    keys = ("task_id", "agent_id", "profile", "program", *(f"key{i}" for i in range(20)))
    error = KapellError(
        reason,
        endless,
        metadata=dict.fromkeys(keys, endless),
        violations=tuple((f"field{i}", endless) for i in range(500)),
        retry_after=1.5,
    )

    status = status_of(error)

    infos = [packed for packed in status.details if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    assert len(status.message.encode()) <= MAX_TEXT_BYTES
    assert sum(packed.ByteSize() for packed in status.details) <= MAX_DETAIL_BYTES
    assert status.ByteSize() <= 4096


def test_violations_that_do_not_fit_are_counted() -> None:
    many = tuple((f"labels[{i}]", "must be short") for i in range(500))
    status = status_of(KapellError(error_pb2.ERROR_REASON_REQUEST_INVALID, "bad", violations=many))

    bad = detail(status, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    shown = len(bad.field_violations) - 1
    assert shown > 10
    assert bad.field_violations[-1].description == f"and {500 - shown} more violations that did not fit"


def test_a_missing_task_is_named_as_a_resource() -> None:
    error = KapellError(error_pb2.ERROR_REASON_TASK_NOT_FOUND, "gone", metadata={"task_id": "task_1"})

    info = detail(status_of(error), error_details_pb2.ResourceInfo)

    assert info == error_details_pb2.ResourceInfo(resource_type="kapell.v1.Task", resource_name="task_1")


def test_a_state_conflict_is_a_precondition_failure() -> None:
    error = KapellError(error_pb2.ERROR_REASON_TASK_STATE_CONFLICT, "it has ended", metadata={"task_id": "task_1"})

    failure = detail(status_of(error), error_details_pb2.PreconditionFailure)

    assert isinstance(failure, error_details_pb2.PreconditionFailure)
    assert (failure.violations[0].type, failure.violations[0].subject) == ("TASK_STATE_CONFLICT", "task_1")


def test_a_full_queue_says_when_to_come_again() -> None:
    status = status_of(KapellError(error_pb2.ERROR_REASON_QUEUE_FULL, "full"))

    retry = detail(status, error_details_pb2.RetryInfo)

    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 200


def test_a_full_disk_is_storage_full_and_anything_else_internal() -> None:
    full = as_kapell_error(OSError(errno.ENOSPC, "no space"))
    other = as_kapell_error(ValueError("secret value"))

    assert TABLE[full.reason].code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert other.reason == error_pb2.ERROR_REASON_INTERNAL
    assert "secret value" not in other.message
    assert other.metadata["request_id"] in other.message
