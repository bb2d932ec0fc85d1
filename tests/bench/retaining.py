"""Retention beside dispatch: how soon a waiting worker has its task while old events are removed."""

from __future__ import annotations

from collections.abc import Sequence

from kapell.v1.admin_pb2 import CompactEventsRequest, CompactEventsResponse
from kapell.v1.event_pb2 import GetLogInfoRequest, GetLogInfoResponse

from tests.bench import messages
from tests.bench.load import RawClient, percentile
from tests.bench.place import kapell
from tests.bench.reading import fill
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.bench.working import dispatch_times

ADMIN = "/kapell.v1.AdminService/"
EVENTS = 20_000
DISPATCHES = 100


@benchmark("retention")
async def dispatch_beside_compaction(setting: Setting) -> Sequence[Row]:
    """Each repetition dispatches in quiet, and then while the log gives back 20,000 events."""
    quiet: list[list[float]] = []
    going: list[list[float]] = []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            info, compact = client.unary(messages.EVENTS + "GetLogInfo"), client.unary(ADMIN + "CompactEvents")
            for number in range(setting.repetitions):
                await fill(client, EVENTS)
                quiet.append(await dispatch_times(server, client, f"quiet-{number}", count=DISPATCHES))
                newest = GetLogInfoResponse.FromString(await info(GetLogInfoRequest().SerializeToString())).revision
                request = CompactEventsRequest(before_revision=newest)
                answer = CompactEventsResponse.FromString(await compact(request.SerializeToString()))
                assert answer.oldest_revision == newest - 1
                going.append(await dispatch_times(server, client, f"going-{number}", count=DISPATCHES))
    return [
        Row(
            name=f"dispatch p{share} while events go",
            unit="ms",
            figures=[percentile(times, share) * 1e3 for times in going],
            floors=[percentile(times, share) * 1e3 for times in quiet],
            goal=goal,
            note="floor: the same in quiet",
        )
        for share, goal in ((50, 1.2), (99, 2.0))
    ]
