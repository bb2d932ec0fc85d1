"""Who calls, what they may do, and the tokens that prove it.

Tokens of agents and leases are not stored: they are a subject and a keyed hash of it, so that
checking one costs a microsecond and a restart forgets nothing. The key lives in the data
directory. Whether the subject still exists is for the engine to say.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache

from kapell.v1.common_pb2 import (
    SCOPE_ADMIN,
    SCOPE_APPROVE,
    SCOPE_READ,
    SCOPE_SPAWN,
    SCOPE_SPAWN_INLINE,
    SCOPE_WORKER,
    SCOPE_WRITE,
    Scope,
)
from kapell.v1.watch_pb2 import ACTOR_KIND_AGENT, ACTOR_KIND_SYSTEM, ACTOR_KIND_USER, Actor

ALL_SCOPES = frozenset(
    {SCOPE_READ, SCOPE_WRITE, SCOPE_SPAWN, SCOPE_SPAWN_INLINE, SCOPE_APPROVE, SCOPE_WORKER, SCOPE_ADMIN}
)
AGENT_SCOPES = frozenset({SCOPE_READ, SCOPE_WORKER})
TICKET_SCOPES = frozenset({SCOPE_WORKER})
PROGRAM_SCOPES: frozenset[Scope.ValueType] = frozenset()
"""What programs may call is said by each method (program_access), whatever its scope."""

_ATTEMPT = "kapell_attempt_"


class CallerKind(enum.Enum):
    """What proved the caller's identity."""

    USER = "user"
    AGENT = "agent"
    PROGRAM = "program"
    TICKET = "ticket"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class LeaseId:
    """What a lease token speaks of."""

    task_id: str
    attempt: int
    start_ns: int
    """When the attempt began: a task that is deleted and made again under its id counts from 1 again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """An authenticated caller. `agent_id` and `instance` are set for agents; tickets and programs have no instance."""

    kind: CallerKind
    name: str
    scopes: frozenset[Scope.ValueType]
    agent_id: str = ""
    instance: int = 0
    token_id: str = ""
    """Of a token that was made by CreateToken; else empty."""
    expire_ns: int = 0
    """When the token's time is over, in ns since 1970; 0: never."""
    peer: str = ""
    """Where the call comes from; set for those that are recorded."""
    lease: LeaseId | None = None
    """Of a program: the attempt that it works on, for the agent `agent_id`."""

    @property
    def is_fenced(self) -> bool:
        """Whether it is kept to its own: an agent, or a program of one."""
        return self.kind is CallerKind.AGENT or self.kind is CallerKind.PROGRAM

    @lru_cache(maxsize=1024)  # noqa: B019 - callers are few and values
    def actor(self) -> Actor:
        """The caller as events record it. Not to be altered."""
        match self.kind:
            case CallerKind.USER:
                return Actor(kind=ACTOR_KIND_USER, id=self.name)
            case CallerKind.AGENT | CallerKind.TICKET | CallerKind.PROGRAM:
                return Actor(kind=ACTOR_KIND_AGENT, id=self.agent_id)
            case CallerKind.SYSTEM:
                return Actor(kind=ACTOR_KIND_SYSTEM, id=self.name)


def user(name: str) -> Caller:
    """A holder of a full token of the server."""
    return Caller(kind=CallerKind.USER, name=name, scopes=ALL_SCOPES)


def system(name: str) -> Caller:
    """A part of the server itself, such as "timer" or "spawner"."""
    return Caller(kind=CallerKind.SYSTEM, name=name, scopes=ALL_SCOPES)


class Keyring:
    """Mints and checks the tokens that the server derives from its key (32 bytes)."""

    def __init__(self, key: bytes, *, admin_token: str) -> None:
        assert len(key) >= 32, "the server key must have 32 bytes"
        self._key = key
        self.version = 0
        """Changes with the owner's token."""
        self._admin = hashlib.sha256(admin_token.encode()).digest()

    def replace_admin(self, admin_token: str) -> None:
        """Takes another token for the owner's; the one before is nobody's."""
        digest = hashlib.sha256(admin_token.encode()).digest()
        if digest != self._admin:
            self._admin = digest
            self.version += 1

    def _mac(self, subject: str) -> str:
        return hashlib.blake2b(subject.encode(), key=self._key, digest_size=18).hexdigest()

    def lease_token(self, task_id: str, attempt: int, start_ns: int) -> str:
        """The secret that proves attempt `attempt` of the task, begun at `start_ns`."""
        subject = f"{task_id}.{attempt}.{start_ns:x}"
        return f"{subject}.{self._mac('lease:' + subject)}"

    def parse_lease_token(self, token: str) -> LeaseId | None:
        """The attempt a genuine token speaks of; None for a forged or damaged one."""
        return self._parse("lease:", token)

    def attempt_token(self, lease_id: LeaseId) -> str:
        """The token of programs that work on this attempt."""
        subject = f"{lease_id.task_id}.{lease_id.attempt}.{lease_id.start_ns:x}"
        return f"{_ATTEMPT}{subject}.{self._mac('attempt:' + subject)}"

    def _parse(self, kind: str, token: str) -> LeaseId | None:
        subject, _, mac = token.rpartition(".")
        if not hmac.compare_digest(mac.encode(errors="replace"), self._mac(kind + subject).encode()):
            return None
        task_id, attempt, start = subject.rsplit(".", 2)
        return LeaseId(task_id, int(attempt), int(start, 16))

    def ticket(self, agent_id: str) -> str:
        """The token a spawned host registers with."""
        return f"kapell_ticket_{agent_id}.{self._mac('ticket:' + agent_id)}"

    def agent_token(self, agent_id: str, instance: int) -> str:
        """The token of one instance of an agent."""
        subject = f"{agent_id}.{instance}"
        return f"kapell_agent_{subject}.{self._mac('agent:' + subject)}"

    def webhook_key(self, webhook_id: str, create_ns: int) -> bytes:
        """What the deliveries of a webhook are signed by; one that is made again under its id has another."""
        subject = f"webhook:{webhook_id}.{create_ns:x}"
        return hashlib.blake2b(subject.encode(), key=self._key, digest_size=32).digest()

    def token_secret(self, token_id: str) -> str:
        """The whole secret of a user's token, which begins with its id."""
        mac = hashlib.blake2b(f"token:{token_id}".encode(), key=self._key, digest_size=32).hexdigest()
        return f"kapell_{token_id}.{mac}"

    def authenticate(self, token: str) -> Caller | None:
        """Whose token it is; None where it is nobody's. Whether an agent or attempt still lives is not checked here.

        Of a program its agent is left open: who has the attempt is known to the engine.
        """
        if token.startswith(_ATTEMPT):
            lease_id = self._parse("attempt:", token.removeprefix(_ATTEMPT))
            if lease_id is None:
                return None
            name = f"attempt {lease_id.attempt} of {lease_id.task_id}"
            return Caller(kind=CallerKind.PROGRAM, name=name, scopes=PROGRAM_SCOPES, lease=lease_id)
        if token.startswith("kapell_agent_"):
            subject, _, mac = token.removeprefix("kapell_agent_").rpartition(".")
            if hmac.compare_digest(mac.encode(), self._mac("agent:" + subject).encode()):
                agent_id, _, instance = subject.rpartition(".")
                return Caller(
                    kind=CallerKind.AGENT,
                    name=agent_id,
                    scopes=AGENT_SCOPES,
                    agent_id=agent_id,
                    instance=int(instance),
                )
            return None
        if token.startswith("kapell_ticket_"):
            agent_id, _, mac = token.removeprefix("kapell_ticket_").rpartition(".")
            if hmac.compare_digest(mac.encode(), self._mac("ticket:" + agent_id).encode()):
                return Caller(kind=CallerKind.TICKET, name=agent_id, scopes=TICKET_SCOPES, agent_id=agent_id)
            return None
        if hmac.compare_digest(hashlib.sha256(token.encode()).digest(), self._admin):
            return user("admin")
        return None
