"""OTLP/HTTP, the receiving end: usage in the telemetry of agents goes to the ledger.

POST /v1/logs and /v1/metrics, as protobuf or JSON, gzipped or not. Answers are those of the protocol: what was
refused is counted in `partial_success` and must not be sent again; 429 and 503 may be. An exporter that is
answered with success may forget what it has sent: by then it is on the disk.

A tool may export both its events and its metrics, which tell of the same tokens. So only one of the two counts,
as `otlp_usage` says; the other is taken and left alone, and the answer tells why.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from kapell.v1.usage_pb2 import (
    USAGE_OUTCOME_KIND_REFUSED,
    RecordUsageRequest,
    RecordUsageResponse,
    UsageOutcome,
    UsageRecord,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kapell_server.gateway.agent_usage import records_of_logs, records_of_metrics
from kapell_server.gateway.door import Door, RefusedError

RECORD_USAGE = "/kapell.v1.UsageService/RecordUsage"
MOST_BYTES = 4 * 1024 * 1024
"""Of a body, unpacked."""
_AT_ONCE = 500
"""Records in one call: half of what it takes, so that long ones fit its size."""
_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_AT_LENGTH = 32 * 1024
"""Bytes that are read on the loop: some milliseconds, more are read in a thread."""
_T = TypeVar("_T", bound=Message)
_R = TypeVar("_R")


class _UnusableError(Exception):
    """The request cannot be read: an HTTP status, and why in words."""

    def __init__(self, http_status: int, text: str) -> None:
        super().__init__(text)
        self.http_status = http_status


class OtlpReceiver:
    """The two endpoints. `counted` is "events" or "metrics"."""

    def __init__(self, door: Door, *, counted: str) -> None:
        self._door = door
        self._counted = counted
        self._line = asyncio.Semaphore(1)
        self.routes = (
            Route("/v1/logs", self.logs, methods=["POST"]),
            Route("/v1/metrics", self.metrics, methods=["POST"]),
        )

    async def logs(self, request: Request) -> Response:
        """Takes events."""
        try:
            await self._door.welcome(RECORD_USAGE, request)
            sent = await self._read(request, ExportLogsServiceRequest)
            answer = ExportLogsServiceResponse()
            if self._counted == "events":
                count, why = await self._record(
                    request, await self._read_all(sent, lambda: list(records_of_logs(sent.resource_logs)))
                )
                answer.partial_success.rejected_log_records = count
            else:
                why = _NOT_COUNTED.format(other="metrics", this="events")
        except (_UnusableError, RefusedError) as error:
            return _refusal(request, error)
        answer.partial_success.error_message = why
        if not why:
            answer.ClearField("partial_success")
        return _answer(request, 200, answer)

    async def metrics(self, request: Request) -> Response:
        """Takes metrics."""
        try:
            await self._door.welcome(RECORD_USAGE, request)
            sent = await self._read(request, ExportMetricsServiceRequest)
            answer = ExportMetricsServiceResponse()
            if self._counted == "metrics":
                count, why = await self._record(
                    request, await self._read_all(sent, lambda: list(records_of_metrics(sent.resource_metrics)))
                )
                answer.partial_success.rejected_data_points = count
            else:
                why = _NOT_COUNTED.format(other="events", this="metrics")
        except (_UnusableError, RefusedError) as error:
            return _refusal(request, error)
        answer.partial_success.error_message = why
        if not why:
            answer.ClearField("partial_success")
        return _answer(request, 200, answer)

    async def _read(self, request: Request, message: type[_T]) -> _T:
        """The message of a request's body. Raises _UnusableError."""
        body = await _body(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        return await self._off_loop(len(body), lambda: _parse(body, kind, message))

    async def _read_all(self, sent: Message, work: Callable[[], _R]) -> _R:
        """The records of what was sent."""
        return await self._off_loop(sent.ByteSize(), work)

    async def _off_loop(self, size: int, work: Callable[[], _R]) -> _R:
        """Does what would hold up the loop, seconds for 4 MiB of JSON, in a thread, for one body at a time."""
        if size <= _AT_LENGTH:
            return work()
        async with self._line:
            return await asyncio.to_thread(work)

    async def _record(self, request: Request, records: Sequence[UsageRecord]) -> tuple[int, str]:
        """Hands the records to the ledger; how many it refused, and why the first one was."""
        refused: list[UsageOutcome] = []
        for begin in range(0, max(len(records), 1), _AT_ONCE):
            some = records[begin : begin + _AT_ONCE]
            if some:
                message = RecordUsageRequest(records=some)
                answer = await self._door.call(RECORD_USAGE, message, request, RecordUsageResponse)
                refused += [outcome for outcome in answer.outcomes if outcome.kind == USAGE_OUTCOME_KIND_REFUSED]
        return len(refused), f"{refused[0].record_id}: {refused[0].message}" if refused else ""


_NOT_COUNTED = (
    "Usage is counted from {other}, so these {this} are not recorded: they tell of the same tokens."
    " Export {other}, or start the server with --otlp-usage {this}."
)


def _parse(body: bytes, kind: str, message: type[_T]) -> _T:
    """The message of a body. Raises _UnusableError."""
    try:
        if kind == _JSON:
            return json_format.Parse(body, message(), ignore_unknown_fields=True)
        if kind == _PROTOBUF:
            return message.FromString(body)
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise _UnusableError(400, f"The body is no {message.DESCRIPTOR.name} of OTLP in {kind}.") from None
    raise _UnusableError(415, f"Content-Type must be {_PROTOBUF} or {_JSON}, not {kind or 'empty'}.")


async def _body(request: Request) -> bytes:
    """The body, unpacked, bounded before and after."""
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > MOST_BYTES:
            raise _too_large()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return bytes(chunks)
    if encoding != "gzip":
        raise _UnusableError(415, f"Content-Encoding must be gzip or none, not {encoding}.")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        data = unpack.decompress(bytes(chunks), MOST_BYTES + 1)
    except zlib.error:
        raise _UnusableError(400, "The body is not gzip, though Content-Encoding says so.") from None
    if len(data) > MOST_BYTES:
        raise _too_large()
    if not unpack.eof:
        raise _UnusableError(400, "The gzipped body is cut short.")
    return data


def _too_large() -> _UnusableError:
    return _UnusableError(413, f"The body has more than {MOST_BYTES:,} bytes. Export smaller batches.")


def _refusal(request: Request, error: _UnusableError | RefusedError) -> Response:
    """As the protocol has it: google.rpc.Status in the encoding of the request."""
    if isinstance(error, _UnusableError):
        return _answer(request, error.http_status, Status(message=str(error)))
    response = _answer(request, error.http_status, Status(code=error.status.code, message=error.status.message))
    seconds = _retry_after(error.status.details)
    if seconds:
        response.headers["retry-after"] = str(seconds)
    return response


def _retry_after(details: Iterable[AnyMessage]) -> int:
    """Whole seconds after which trying again makes sense; 0 where nothing is said of it."""
    for detail in details:
        retry = RetryInfo()
        if detail.Unpack(retry):
            return max(1, math.ceil(float(retry.retry_delay.ToMilliseconds()) / 1000))
    return 0


def _answer(request: Request, http_status: int, message: Message) -> Response:
    if request.headers.get("content-type", "").startswith(_JSON):
        return Response(json_format.MessageToJson(message), http_status, media_type=_JSON)
    return Response(message.SerializeToString(), http_status, media_type=_PROTOBUF)
