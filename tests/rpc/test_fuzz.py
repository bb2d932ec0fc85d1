"""Random and malformed requests over all rpcs with every kind of token: nothing breaks, a refusal changes nothing.

The long run is among the slow tests. A failure names seed and number; `Fuzz(seed, …)` makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from kapell.v1 import admin_pb2, event_pb2, token_pb2
from kapell.v1.common_pb2 import SCOPE_ADMIN, SCOPE_READ, SCOPE_SPAWN, SCOPE_WORKER, SCOPE_WRITE
from kapell.v1.watch_pb2 import ACTOR_KIND_SYSTEM

from tests.rpc.fuzzing import Fuzz
from tests.rpc.rpc_table import CASES
from tests.rpc.scene import METHODS, Scene, unpack
from tests.support.server_process import ServerProcess

# Its effects are processes, which are the spawner's tests; and its refusals are looked at all the same.
SPAWNS = "SpawnAgent"
FINE = {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
SECONDS = 5.0


@contextmanager
def serving(directory: Path) -> Iterator[Scene]:
    """A server of its own: what one run leaves, such as a queue that takes nothing, would be in the way of the next."""
    limits = ("--max-failed-logins", "1000000", "--max-agents", "100000", "--no-templates")
    with ServerProcess(directory / "data", arguments=limits) as server:
        scene = Scene(server)
        yield scene
        assert scene.ask("GetServerInfo", admin_pb2.GetServerInfoRequest()).version
        assert "call failed" not in server.log
        scene.close()


def tokens(scene: Scene) -> list[str]:
    """Of every kind; the owner's most often, since it comes furthest."""
    made = [
        scene.ask("CreateToken", token_pb2.CreateTokenRequest(principal="fuzz", scopes=[scope])).secret
        for scope in (SCOPE_ADMIN, SCOPE_READ, SCOPE_WRITE, SCOPE_SPAWN, SCOPE_WORKER)
    ]
    gone = scene.ask("CreateToken", token_pb2.CreateTokenRequest(principal="fuzz", scopes=[SCOPE_ADMIN]))
    scene.ask("RevokeToken", token_pb2.RevokeTokenRequest(token_id=gone.token.token_id))
    owner = scene.server.admin_token
    others = [scene.worker().token, scene.keyring.ticket("agent_1"), gone.secret, "garbage", "kapell_token_%00.x", ""]
    return [*[owner] * 8, *made, *others]


def run(scene: Scene, seed: int, count: int) -> dict[str, int]:
    """Sends `count` requests one after the other; how often each code came."""
    samples = {name: case.works(scene) for name, case in CASES.items()}
    running = scene.running()
    words = [running.task_id, running.worker.agent_id, running.lease_token, "shell", "nobody", "fuzz", "task_new"]
    words += [str(getattr(ask.request, field.name)) for ask in samples.values() for field in _strings(ask.request)]
    fuzz = Fuzz(seed, [word for word in words if word])
    # Who ends the owner's means of calling would end the test.
    names = [name for name in METHODS if name not in (SPAWNS, "RevokeToken")]
    bearers = tokens(scene)
    codes: dict[str, int] = {}
    watched = Watched(scene)
    for number in range(count):
        name = fuzz.random.choice(names)
        sample = samples[name]
        data = fuzz.request(METHODS[name].request, sample.request)
        bearer = sample.token if sample.token and fuzz.random.random() < 0.5 else fuzz.random.choice(bearers)
        code, reason = _send(scene, name, data, bearer)
        place = f"seed {seed}, request {number}: {name} {data!r}"
        assert code in FINE or reason, f"{place} was refused with {code} without a reason"
        assert code not in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS"), f"{place} broke the server: {code}"
        done = watched.done(may_go_on=code in FINE)
        assert code in FINE or not done, f"{place} was refused with {code} {reason}, and did {done}"
        codes[code] = codes.get(code, 0) + 1
    return codes


class Watched:
    """What users have done since it was last asked."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._goes_on = True
        self._revision = 0

    def done(self, *, may_go_on: bool) -> list[object]:
        """Events of users and agents; nothing where the call, or the one before, may still have had an effect."""
        if may_go_on:
            self._goes_on = True
            return []
        events = self._scene.ask("ListEvents", event_pb2.ListEventsRequest(page_size=5)).events
        newest = max((event.revision for event in events), default=self._revision)
        found = [event for event in events if event.revision > self._revision and event.actor.kind != ACTOR_KIND_SYSTEM]
        known, self._revision = not self._goes_on, newest
        self._goes_on = False
        return list(found) if known else []


def _strings(request: object) -> list[object]:
    fields = request.DESCRIPTOR.fields  # type: ignore[attr-defined]
    return [field for field in fields if field.type == field.TYPE_STRING and not field.is_repeated]


def _send(scene: Scene, name: str, data: bytes, bearer: str, *, patient: bool = False) -> tuple[str, str]:
    """Code and reason. A stream is read to its first message; a long poll is not waited for, unless `patient`."""
    method = METHODS[name]
    metadata = (("authorization", f"Bearer {bearer}"),) if bearer else ()
    try:
        if method.streams:
            stream = scene.channel.unary_stream(method.path)(
                data, metadata=metadata, timeout=SECONDS if patient else 0.2
            )
            next(stream, None)
            stream.cancel()
        else:
            waits = "wait" in method.request.DESCRIPTOR.fields_by_name or name == "TerminateAgent"
            scene.channel.unary_unary(method.path)(
                data, metadata=metadata, timeout=0.05 if waits and not patient else SECONDS
            )
    except grpc.RpcError as error:
        code = error.code().name
        return code, "" if code in FINE else "".join(unpack(error).reasons)
    return "OK", ""


def refused_change_nothing(scene: Scene, seed: int, count: int) -> None:
    """Sends requests that cannot succeed, for their token, and looks for what they have done."""
    samples = {name: case.works(scene).request for name, case in CASES.items()}
    bad = [token for token in tokens(scene) if token in ("garbage", "") or token.startswith("kapell_ticket")]
    fuzz = Fuzz(seed, ["shell"])
    before = scene.ask("GetLogInfo", event_pb2.GetLogInfoRequest()).revision
    for _ in range(count):
        name = fuzz.random.choice([name for name in METHODS if name != "RegisterWorker"])
        data = fuzz.request(METHODS[name].request, samples[name])
        code, _ = _send(scene, name, data, fuzz.random.choice(bad), patient=True)
        assert code in ("UNAUTHENTICATED", "PERMISSION_DENIED"), name
    events = scene.ask("ListEvents", event_pb2.ListEventsRequest(page_size=1000)).events
    done = [event for event in events if event.revision > before and event.actor.kind != ACTOR_KIND_SYSTEM]
    assert done == []


@pytest.mark.timeout(120)
def test_a_thousand_senseless_requests_break_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:
        codes = run(scene, seed=1, count=1500)

    assert codes["OK"] > 100
    assert codes["INVALID_ARGUMENT"] > 100


@pytest.mark.timeout(120)
def test_refused_requests_change_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:
        refused_change_nothing(scene, seed=2, count=1000)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(10, 20))
def test_ten_thousand_senseless_requests_break_nothing(tmp_path: Path, seed: int) -> None:
    """Ten times: a hundred thousand."""
    with serving(tmp_path) as scene:
        run(scene, seed=seed, count=10_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_refused_requests_change_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:
        refused_change_nothing(scene, seed=20, count=10_000)
