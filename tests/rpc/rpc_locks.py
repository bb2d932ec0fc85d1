"""The part of rpc_table about locks."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from kapell.v1 import lock_pb2, worker_pb2
from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, LockFilter, LockItem

from tests.rpc.rpc_cases import Case, of_watch
from tests.rpc.scene import Ask, Scene

_MINUTE = Duration(seconds=60)
_NOT_A_PATH = "repo/../secrets"
_NO_TICKET = "ticket_nothing"


def is_one(message: Any) -> bool:
    """Whether the message is of LockService."""
    return message is not None and message.DESCRIPTOR.file.name == "kapell/v1/lock.proto"


def subject_of(answer: Any, request: Any) -> str:
    """The lock, ticket or session that a call is about, as "locks/ID"; empty where the call makes it."""
    for message in (answer, request):
        for field in ("ticket", "session"):
            if is_one(message) and field in message.DESCRIPTOR.fields_by_name and message.HasField(field):
                return f"locks/{getattr(getattr(message, field), field + '_id')}"
        if getattr(message, "locks", None):
            return f"locks/{message.locks[0].lock_id}"
        if getattr(message, "lock_ids", None):
            return f"locks/{message.lock_ids[0]}"
        for field in ("lock_id", "ticket_id", "session_id"):
            if getattr(message, field, ""):
                return f"locks/{getattr(message, field)}"
    return ""


def alter(request: Any) -> bool:
    """Makes another request of one about locks; False for one about something else."""
    if not is_one(request):
        return False
    for field, another in (
        *(("note", "another"), ("reason", "another"), ("display_name", "another")),
        *(("ticket_id", "ticket_another"), ("session_id", "session_another")),
    ):
        if field in request.DESCRIPTOR.fields_by_name:
            setattr(request, field, another)
            return True
    request.lock_ids.append("lock_another")
    return True


def wanted(*paths: str, shared: bool = False, **fields: Any) -> Ask:
    """A request for locks."""
    mode = LOCK_MODE_SHARED if shared else lock_pb2.LOCK_MODE_EXCLUSIVE
    items = [LockItem(path=path, mode=mode) for path in paths]
    return Ask(lock_pb2.AcquireLocksRequest(items=items, **{"ttl": _MINUTE, **fields}))


def lock(scene: Scene, path: str = "", **fields: Any) -> lock_pb2.Lock:
    """A lock on a path that nobody else knows."""
    answer: lock_pb2.AcquireLocksResponse = scene.call("AcquireLocks", wanted(path or scene.name("files/f"), **fields))
    return answer.locks[0]


def ticket(scene: Scene) -> str:
    """The id of a place in a queue."""
    held = lock(scene)
    answer = scene.call("AcquireLocks", wanted(held.path, keep_queued=True))
    return str(answer.ticket.ticket_id)


def session(scene: Scene) -> str:
    """The id of an open session."""
    return str(scene.ask("OpenSession", lock_pb2.OpenSessionRequest(ttl=_MINUTE)).session.session_id)


def session_of_an_agent(scene: Scene) -> str:
    request = lock_pb2.OpenSessionRequest(ttl=_MINUTE)
    return str(scene.call("OpenSession", Ask(request, scene.worker().token)).session.session_id)


def _acquire_of_ended_attempt(scene: Scene) -> Ask:
    running = scene.running()
    scene.call("ReleaseTask", Ask(worker_pb2.ReleaseTaskRequest(lease_token=running.lease_token), running.worker.token))
    return _by_attempt(scene, running.lease_token, running.worker.token)


def _by_attempt(scene: Scene, lease_token: str, token: str) -> Ask:
    items = [LockItem(path=scene.name("files/a"))]
    return Ask(lock_pb2.AcquireLocksRequest(items=items, lease_token=lease_token), token)


def _deadlock(scene: Scene) -> Ask:
    """A session asks for what another holds that already waits for it."""
    one, other = session(scene), session(scene)
    first, second = scene.name("files/d"), scene.name("files/d")
    scene.call("AcquireLocks", wanted(first, session_id=one))
    scene.call("AcquireLocks", wanted(second, session_id=other))
    scene.call("AcquireLocks", wanted(second, session_id=one, keep_queued=True))
    return wanted(first, session_id=other, wait=_MINUTE)


def _released(scene: Scene) -> lock_pb2.Lock:
    gone = lock(scene)
    scene.ask("ReleaseLocks", lock_pb2.ReleaseLocksRequest(lock_ids=[gone.lock_id]))
    return gone


def _by_another_agent(scene: Scene, name: str) -> Ask:
    request: Any
    if name == "session":
        return wanted(scene.name("files/n"), session_id=session_of_an_agent(scene))
    if name == "ticket":
        request = lock_pb2.CancelLockTicketRequest(ticket_id=ticket(scene))
    elif name == "renew":
        request = lock_pb2.RenewLocksRequest(lock_ids=[lock(scene).lock_id])
    else:
        request = lock_pb2.ReleaseLocksRequest(lock_ids=[lock(scene).lock_id])
    return Ask(request, scene.worker().token)


def _of_session(request: type[Any]) -> dict[str, Any]:
    """The refusals of what is said about one session."""
    return {
        "LOCK_LOST": lambda scene: Ask(request(session_id="session_nothing")),
        "NOT_OWNER": lambda scene: Ask(request(session_id=session(scene)), scene.worker().token),
    }


def _page(scene: Scene, name: str, request: type[Any], **other: Any) -> Ask:
    """The second page of a list, asked for in another one."""
    for _ in range(2):
        lock(scene)
        session(scene)
    page = scene.ask(name, request(page_size=1))
    assert page.next_page_token
    return Ask(request(page_token=page.next_page_token, **other))


def _pages(name: str, request: type[Any], **other: Any) -> dict[str, Any]:
    refused = {"PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(request(page_token="not-a-token"))}
    if other:
        refused["PAGE_TOKEN_INVALID: of another filter"] = lambda scene: _page(scene, name, request, **other)
    return refused


def _fence(scene: Scene, token: int = 0, path: str = "") -> Ask:
    held = lock(scene)
    return Ask(lock_pb2.CheckFenceRequest(path=path or f"{held.path}/below", fencing_token=token or held.fencing_token))


_OTHER_FILTER = LockFilter(session_id="session_other")

LOCKS: dict[str, Case] = {
    "AcquireLocks": Case(
        works=lambda scene: wanted(scene.name("files/w"), scene.name("files/w")),
        holds=lambda answer: (
            len(answer.locks) == 2
            and answer.locks[0].fencing_token < answer.locks[1].fencing_token <= answer.revision
            and answer.locks[0].HasField("expire_time")
        ),
        refused={
            "LOCK_HELD": lambda scene: wanted(f"{lock(scene).path}/below"),
            "LOCK_LOST": lambda scene: wanted("x", session_id="session_nothing"),
            "LEASE_LOST": _acquire_of_ended_attempt,
            "NOT_OWNER": lambda scene: _by_attempt(scene, scene.running().lease_token, scene.worker().token),
            "DEADLOCK": _deadlock,
            "REQUEST_INVALID: not a path": lambda scene: wanted(_NOT_A_PATH),
            "REQUEST_INVALID: twice": lambda scene: wanted("files/twice", "files/twice/"),
        },
        malformed=({"items": [{"path": "a"}], "wait": "61s"}, "wait"),
        lasts=lambda scene: wanted(lock(scene).path, wait=_MINUTE, keep_queued=True),
    ),
    "RenewLocks": Case(
        works=lambda scene: Ask(lock_pb2.RenewLocksRequest(lock_ids=[lock(scene).lock_id])),
        holds=lambda answer: answer.locks[0].ttl_remaining.seconds >= 59,
        refused={
            "LOCK_LOST": lambda scene: Ask(lock_pb2.RenewLocksRequest(lock_ids=[_released(scene).lock_id])),
            "NOT_OWNER": lambda scene: _by_another_agent(scene, "renew"),
            "REQUEST_INVALID: of a session": lambda scene: Ask(
                lock_pb2.RenewLocksRequest(lock_ids=[lock(scene, session_id=session(scene)).lock_id])
            ),
        },
        malformed=({"lockIds": []}, "lock_ids"),
    ),
    "ReleaseLocks": Case(
        works=lambda scene: Ask(lock_pb2.ReleaseLocksRequest(lock_ids=[lock(scene).lock_id, "lock_nothing"])),
        holds=lambda answer: (
            answer.locks[0].state == lock_pb2.LOCK_STATE_RELEASED and list(answer.lost_lock_ids) == ["lock_nothing"]
        ),
        refused={"NOT_OWNER": lambda scene: _by_another_agent(scene, "release")},
        malformed=({}, "lock_ids"),
    ),
    "ForceReleaseLocks": Case(
        works=lambda scene: Ask(lock_pb2.ForceReleaseLocksRequest(lock_id=lock(scene).lock_id, reason="stuck")),
        holds=lambda answer: (
            answer.locks[0].state == lock_pb2.LOCK_STATE_REVOKED
            and answer.locks[0].state_reason == "stuck"
            and answer.fencing_token > answer.locks[0].fencing_token
        ),
        refused={
            "REQUEST_INVALID: not a path": lambda scene: Ask(
                lock_pb2.ForceReleaseLocksRequest(path=_NOT_A_PATH, reason="stuck")
            )
        },
        malformed=({"path": "a"}, "reason"),
    ),
    "ListLocks": Case(
        works=lambda scene: Ask(lock_pb2.ListLocksRequest(filter=LockFilter(path=lock(scene).path))),
        holds=lambda answer: len(answer.locks) == 1 and answer.waiter_count == 0,
        refused={
            **_pages("ListLocks", lock_pb2.ListLocksRequest, filter=_OTHER_FILTER),
            "REQUEST_INVALID: not a path": lambda scene: Ask(
                lock_pb2.ListLocksRequest(filter=LockFilter(path=_NOT_A_PATH))
            ),
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "CheckFence": Case(
        works=_fence,
        holds=lambda answer: answer.lock.fencing_token > 0 and answer.revision > 0,
        refused={
            "FENCING_TOKEN_STALE": lambda scene: _fence(scene, token=1),
            "REQUEST_INVALID: not a path": lambda scene: _fence(scene, path=_NOT_A_PATH),
        },
        malformed=({"path": "a"}, "fencing_token"),
    ),
    "WatchLocks": Case(
        works=lambda scene: Ask(lock_pb2.WatchLocksRequest(filter=LockFilter(path="repo"))),
        holds=lambda answer: answer.HasField("bookmark"),
        refused={
            **of_watch(lock_pb2.WatchLocksRequest),
            "REQUEST_INVALID: not a path": lambda scene: Ask(
                lock_pb2.WatchLocksRequest(filter=LockFilter(path=_NOT_A_PATH))
            ),
        },
        malformed=({"options": {"bookmarkInterval": "61s"}}, "options.bookmark_interval"),
        lasts=lambda scene: Ask(lock_pb2.WatchLocksRequest()),
    ),
    "GetLockGraph": Case(
        works=lambda scene: Ask(lock_pb2.GetLockGraphRequest(filter=LockFilter(path=_path_of(scene, ticket(scene))))),
        holds=lambda answer: len(answer.nodes) == 2 and answer.edges[0].kind == lock_pb2.LOCK_WAIT_KIND_HELD,
        refused={
            "REQUEST_INVALID: not a path": lambda scene: Ask(
                lock_pb2.GetLockGraphRequest(filter=LockFilter(path=_NOT_A_PATH))
            )
        },
        malformed=({"filter": {"taskId": "x" * 65}}, "filter.task_id"),
    ),
    "GetLockTicket": Case(
        works=lambda scene: Ask(lock_pb2.GetLockTicketRequest(ticket_id=ticket(scene))),
        holds=lambda answer: answer.ticket.position == 1 and len(answer.ticket.blockers) == 1,
        refused={"LOCK_TICKET_NOT_FOUND": lambda scene: Ask(lock_pb2.GetLockTicketRequest(ticket_id=_NO_TICKET))},
        malformed=({}, "ticket_id"),
    ),
    "WatchLockTicket": Case(
        works=lambda scene: Ask(lock_pb2.WatchLockTicketRequest(ticket_id=ticket(scene))),
        holds=lambda answer: answer.ticket.state == lock_pb2.LOCK_TICKET_STATE_WAITING,
        refused={"LOCK_TICKET_NOT_FOUND": lambda scene: Ask(lock_pb2.WatchLockTicketRequest(ticket_id=_NO_TICKET))},
        malformed=({}, "ticket_id"),
        lasts=lambda scene: Ask(lock_pb2.WatchLockTicketRequest(ticket_id=ticket(scene))),
    ),
    "CancelLockTicket": Case(
        works=lambda scene: Ask(lock_pb2.CancelLockTicketRequest(ticket_id=ticket(scene))),
        holds=lambda answer: answer.ticket.state == lock_pb2.LOCK_TICKET_STATE_CANCELLED,
        refused={
            "LOCK_TICKET_NOT_FOUND": lambda scene: Ask(lock_pb2.CancelLockTicketRequest(ticket_id=_NO_TICKET)),
            "NOT_OWNER": lambda scene: _by_another_agent(scene, "ticket"),
        },
        malformed=({}, "ticket_id"),
    ),
    "OpenSession": Case(
        works=lambda scene: Ask(lock_pb2.OpenSessionRequest(display_name="a script")),
        holds=lambda answer: answer.session.ttl.seconds == 30 and answer.session.HasField("expire_time"),
        malformed=({"ttl": "0.5s"}, "ttl"),
    ),
    "RenewSession": Case(
        works=lambda scene: Ask(lock_pb2.RenewSessionRequest(session_id=session(scene))),
        holds=lambda answer: answer.session.ttl_remaining.seconds >= 59,
        refused=_of_session(lock_pb2.RenewSessionRequest),
        malformed=({}, "session_id"),
    ),
    "CloseSession": Case(
        works=lambda scene: Ask(lock_pb2.CloseSessionRequest(session_id=session(scene))),
        holds=lambda answer: answer.session.state == lock_pb2.LOCK_SESSION_STATE_CLOSED,
        refused=_of_session(lock_pb2.CloseSessionRequest),
        malformed=({}, "session_id"),
    ),
    "ListSessions": Case(
        works=lambda scene: Ask(lock_pb2.ListSessionsRequest()),
        holds=lambda answer: answer.revision > 0,
        refused=_pages("ListSessions", lock_pb2.ListSessionsRequest),
        malformed=({"pageSize": 1001}, "page_size"),
    ),
}


def _path_of(scene: Scene, ticket_id: str) -> str:
    found = scene.ask("GetLockTicket", lock_pb2.GetLockTicketRequest(ticket_id=ticket_id)).ticket
    return str(found.items[0].path)


VALID_OF_LOCKS: dict[str, dict[str, Any]] = {
    "AcquireLocks": {"items": [{"path": "repo/src"}]},
    "RenewLocks": {"lockIds": ["lock_a"]},
    "ReleaseLocks": {"lockIds": ["lock_a"]},
    "ForceReleaseLocks": {"path": "repo", "reason": "stuck"},
    "CheckFence": {"path": "repo", "fencingToken": "1"},
    **{f"{verb}LockTicket": {"ticketId": "ticket_a"} for verb in ("Get", "Watch", "Cancel")},
    **{f"{verb}Session": {"sessionId": "session_a"} for verb in ("Renew", "Close")},
}
"""Requests that pass validation, of the methods that require something."""
