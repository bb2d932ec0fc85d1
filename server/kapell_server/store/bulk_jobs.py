"""Rows of changes of many tasks that are not done yet: written with each step, read at the start."""

from __future__ import annotations

import json

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.access import Caller, CallerKind
from kapell_server.domain.tasks.bulk_job import RESPONSES, BulkJob, BulkWrites, resume_part
from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import bulk_jobs, bulk_steps

_METHODS = {kind.DESCRIPTOR.name: kind for kind in RESPONSES}

_insert_jobs = Bulk(sa.insert(bulk_jobs), "job_key", "method", "request", "caller", "task_ids", "matched")
_insert_steps = Bulk(sa.insert(bulk_steps), "job_key", "first", "data")
_deletes = tuple(
    Bulk(sa.delete(table).where(table.c.job_key == bindparam("key")), "key") for table in (bulk_jobs, bulk_steps)
)


def write_bulk_jobs(connection: Connection, writes: BulkWrites) -> None:
    """Writes what a batch has done of jobs. A job that has ended leaves nothing but its answer."""
    _insert_jobs.execute(connection, [_row(job) for job in writes.started.values()])
    _insert_steps.execute(connection, [(key, first, data) for (key, first), data in writes.steps.items()])
    for delete in _deletes:
        delete.execute(connection, [(key,) for key in writes.ended])


def _row(job: BulkJob) -> tuple[str, str, bytes, bytes, bytes, int]:
    method = job.request.DESCRIPTOR.name
    return (
        job.key,
        method,
        job.request.SerializeToString(),
        _caller_bytes(job.caller),
        "\n".join(job.task_ids).encode(),
        job.matched,
    )


def load_bulk_jobs(connection: Connection) -> list[BulkJob]:
    """The jobs that were not done when the server ended, each as far as it had come."""
    jobs: dict[str, BulkJob] = {}
    for key, method, request, caller, task_ids, matched in connection.execute(sa.select(bulk_jobs)):
        jobs[key] = BulkJob(
            key=key,
            request=_METHODS[method].FromString(request),
            caller=_caller(caller),
            task_ids=bytes(task_ids).decode().split("\n"),
            matched=matched,
        )
    steps = sa.select(bulk_steps.c.job_key, bulk_steps.c.data).order_by(bulk_steps.c.job_key, bulk_steps.c.first)
    for key, data in connection.execute(steps):
        resume_part(jobs[key], bytes(data))
    return list(jobs.values())


def _caller_bytes(caller: Caller) -> bytes:
    """Who asked, as the events of the later steps will name them. What they may do was checked when they asked."""
    return json.dumps({"kind": caller.kind.value, "name": caller.name, "agent_id": caller.agent_id}).encode()


def _caller(data: bytes) -> Caller:
    known = json.loads(data)
    kind = CallerKind(known["kind"])
    return Caller(kind=kind, name=known["name"], scopes=frozenset(), agent_id=known["agent_id"])
