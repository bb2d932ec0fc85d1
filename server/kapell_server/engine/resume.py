"""A start: what lives is read into memory, and every lease gets one full duration of grace.

So the death of a server kills nobody's work: an agent that goes on sending heartbeats finds its
leases as they were.
"""

from __future__ import annotations

from kapell.v1.schedule_pb2 import Schedule

from kapell_server.domain.locks import resumption
from kapell_server.domain.schedules import schedule_run
from kapell_server.domain.state import State
from kapell_server.domain.tasks.deadlines import agent_start_deadline_ns
from kapell_server.domain.times import SECOND
from kapell_server.domain.workers import agent, restart
from kapell_server.domain.workers.leases import Lease
from kapell_server.engine.batch import load_deadlines
from kapell_server.store.bulk_jobs import load_bulk_jobs
from kapell_server.store.database import Connection
from kapell_server.store.loads import RowLoader, load_resumption
from kapell_server.store.remembered import request_key
from kapell_server.store.token_rows import load_audit_number, load_token_digests
from kapell_server.store.usage_rows import load_last_numbers, load_untold, load_whole


def resume(connection: Connection, state: State, now_ns: int) -> None:
    """Fills an empty state from the database."""
    loaded = load_resumption(connection)
    state.begin(now_ns, RowLoader(connection))
    state.log_id = loaded.log_id
    state.revision = loaded.revision
    state.oldest_revision = loaded.oldest_revision
    grace = now_ns + int(state.settings.lease_duration * SECOND)
    state.standing.load(loaded.standing)
    state.approvals.load(loaded.approvals)
    state.schedule_lives.load(loaded.schedule_runs)
    state.secret_values.update(loaded.secret_values)
    state.agent_secrets.update(loaded.agent_secrets)
    for schedule in state.standing.all(Schedule):
        schedule_run.wake(state, schedule)
    for known, instance_key in loaded.agents:
        state.agents[known.agent_id] = known
        if instance_key:
            state.instance_keys[known.agent_id] = instance_key
        state.agent_seen_ns[known.agent_id] = now_ns
        state.agent_polled_ns[known.agent_id] = now_ns
        start = agent_start_deadline_ns(known, state.settings, now_ns) or restart.due_ns(known)
        if start:
            state.schedule(start, known.agent_id)
        else:
            agent.watch_silence(state, known.agent_id)
    for record, poll_id in loaded.attempts:
        state.leases.add(Lease(record=record, expire_ns=grace, poll_id=poll_id, confirmed=True, news_ns=now_ns))
        state.schedule(grace, record.task_id)
    resumption.load(state, request_key)
    state.queues.load(loaded.queued, loaded.leased, loaded.resting, loaded.starts)
    state.budgets.load(*loaded.budgets)
    state.alerts.load()
    state.edges.load(loaded.edges, loaded.stirred)
    state.token_digests.update(load_token_digests(connection))
    state.audit_number = load_audit_number(connection)
    load_deadlines(connection, state, 0)
    state.usage.resume(load_last_numbers(connection), load_whole(connection), load_untold(connection))
    state.bulk_jobs.update((job.key, job) for job in load_bulk_jobs(connection))
