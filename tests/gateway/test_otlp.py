"""OTLP over HTTP against a real server: what is told of twice counts once, and what is wrong is answered clearly."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from google.rpc.status_pb2 import Status
from kapell.sync import SyncClient
from kapell.v1.usage_pb2 import ListUsageRecordsRequest, UsageTotals
from kapell.v1.worker_pb2 import CompleteTaskRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from tests.gateway.telemetry import claude_counter, claude_request, codex_response, logs
from tests.rpc.scene import Ask, Scene
from tests.support.server_process import ServerProcess

PROTOBUF, JSON = "application/x-protobuf", "application/json"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


class Exporter:
    """Sends as an exporter would."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.token = server.admin_token

    def post(self, path: str, body: bytes, *, kind: str = PROTOBUF, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.server.http_address, timeout=30)
        sent = {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            sent["authorization"] = f"Bearer {self.token}"
        try:
            connection.request("POST", path, body, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.read(), found)
        finally:
            connection.close()

    def totals(self) -> UsageTotals:
        with SyncClient(self.server.address, token=self.server.admin_token) as client:
            return client.usage.query(start=datetime(2025, 1, 1, tzinfo=UTC)).total


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    with ServerProcess(tmp_path / "data", http_address="127.0.0.1:0") as server:
        yield Exporter(server)


@pytest.fixture
def exporter_of_metrics(tmp_path: Path) -> Iterator[Exporter]:
    with ServerProcess(tmp_path / "data", http_address="127.0.0.1:0", arguments=("--otlp-usage", "metrics")) as server:
        yield Exporter(server)


def status_of(answer: Answer) -> Status:
    return Status.FromString(answer.body)


def test_events_count_once_however_often_and_in_whichever_form_they_are_sent(exporter: Exporter) -> None:
    sent = logs(claude_request(), codex_response())
    data = sent.SerializeToString()

    answers = [
        exporter.post("/v1/logs", data),
        exporter.post("/v1/logs", gzip.compress(data), content_encoding="gzip"),
        exporter.post("/v1/logs", MessageToJson(sent).encode(), kind=JSON),
    ]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert ExportLogsServiceResponse.FromString(answers[0].body) == ExportLogsServiceResponse()
    totals = exporter.totals()
    assert totals.records == 2
    assert totals.tokens.input_tokens == 120 + 15000 + 800 + 1000
    assert totals.tokens.output_tokens == 340 + 200


def test_what_was_answered_is_there_after_a_crash(exporter: Exporter) -> None:
    assert exporter.post("/v1/logs", logs(claude_request()).SerializeToString()).status == 200

    exporter.server.restart()

    assert exporter.totals().records == 1


def test_metrics_are_left_alone_while_events_count(exporter: Exporter) -> None:
    answer = exporter.post("/v1/metrics", claude_counter([("input", 10)]).SerializeToString())

    said = ExportMetricsServiceResponse.FromString(answer.body).partial_success
    assert answer.status == 200
    assert said.rejected_data_points == 0
    assert "--otlp-usage metrics" in said.error_message
    assert exporter.totals().records == 0


def test_running_totals_of_metrics_count_their_difference(exporter_of_metrics: Exporter) -> None:
    for value, end in ((100, 0), (250, 10), (250, 20)):
        sent = claude_counter([("input", value)], cumulative=True, end_ns=1_760_000_000_000_000_000 + end)
        assert exporter_of_metrics.post("/v1/metrics", sent.SerializeToString()).status == 200

    assert exporter_of_metrics.totals().tokens.input_tokens == 250


def test_a_record_of_a_task_that_is_not_there_is_counted_as_rejected(exporter: Exporter) -> None:
    sent = logs(claude_request(), codex_response(), resource={"kapell__task_id": "task_none"})

    answer = exporter.post("/v1/logs", sent.SerializeToString())

    said = ExportLogsServiceResponse.FromString(answer.body).partial_success
    assert answer.status == 200
    assert said.rejected_log_records == 2
    assert "task_none" in said.error_message


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"\xff\xff", {}, 400, "is no ExportLogsServiceRequest"),
        (b"{", {"kind": JSON}, 400, "is no ExportLogsServiceRequest"),
        (b"", {"kind": "text/plain"}, 415, "Content-Type must be"),
        (b"x", {"content_encoding": "br"}, 415, "Content-Encoding must be"),
        (b"no gzip at all", {"content_encoding": "gzip"}, 400, "not gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-12], {"content_encoding": "gzip"}, 400, "cut short"),
        (gzip.compress(b"\0" * (4 * 1024 * 1024 + 1), mtime=0), {"content_encoding": "gzip"}, 413, "Export smaller"),
        (b"\0" * (4 * 1024 * 1024 + 1), {}, 413, "Export smaller"),
    ],
)
def test_what_cannot_be_read_is_refused_and_changes_nothing(
    exporter: Exporter, body: bytes, headers: dict[str, str], status: int, text: str
) -> None:
    answer = exporter.post("/v1/logs", body, **headers)  # type: ignore[arg-type]

    assert answer.status == status
    said = answer.body.decode() if headers.get("kind") == JSON else status_of(answer).message
    assert text in said
    assert exporter.totals().records == 0


@pytest.mark.parametrize("token", ["", "wrong"])
def test_nobody_gets_in_without_a_token(exporter: Exporter, token: str) -> None:
    exporter.token = token

    answer = exporter.post("/v1/logs", logs(claude_request()).SerializeToString())

    assert answer.status == 401
    assert status_of(answer).code == 16
    assert exporter.totals().records == 0


def test_a_body_of_nobody_is_not_even_read(exporter: Exporter) -> None:
    bodies = ((JSON, b"{}"), (JSON, b"garbage"), (PROTOBUF, b""), ("text/plain", b"-"))

    for exporter.token in ("", "wrong"):
        for path in ("/v1/logs", "/v1/metrics"):
            assert [exporter.post(path, body, kind=kind).status for kind, body in bodies] == [401] * len(bodies)


def test_what_a_program_exports_is_of_its_attempt(exporter: Exporter) -> None:
    scene = Scene(exporter.server)
    mine = scene.running()
    exporter.token = mine.offer.attempt_token

    answer = exporter.post("/v1/logs", logs(claude_request()).SerializeToString())

    assert answer.status == 200
    [record] = scene.ask("ListUsageRecords", ListUsageRecordsRequest()).records
    assert (record.task_id, record.attempt, record.agent_id) == (mine.task_id, 1, mine.worker.agent_id)
    scene.call("CompleteTask", Ask(CompleteTaskRequest(lease_token=mine.lease_token), mine.worker.token))
    assert exporter.post("/v1/logs", b"").status == 401
    scene.close()


def test_it_lives_and_is_ready_and_knows_nothing_else(exporter: Exporter) -> None:
    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(exporter.server.http_address, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    assert get("/livez") == (200, b"ok\n")
    assert get("/readyz")[0] == 200
    assert get("/v1/logs")[0] == 405
    assert get("/else")[0] == 404
