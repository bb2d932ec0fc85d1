"""The answer of LeaseTasks: tasks as they were encoded, with their content joined on."""

from __future__ import annotations

from kapell.v1.agent_pb2 import API_ACCESS_NONE
from kapell.v1.worker_pb2 import Offer

from kapell_server.domain.queueing.polls import Poll
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.times import set_duration, stamp
from kapell_server.store.writes import Written
from kapell_server.wire import field, int_field

_TASK = Offer.DESCRIPTOR.fields_by_name["task"].number


def encode_offers(state: State, poll: Poll, written: Written) -> bytes:
    """An encoded LeaseTasksResponse with what the poll has got, perhaps nothing."""
    state.prefetch_contents([lease.task_id for lease in poll.taken])
    offers = []
    for lease in poll.taken:
        if state.leases.by_task.get(lease.task_id) is not lease:
            continue
        task = state.task(lease.task_id)
        data = written.encoded.get(task.revision) or task.SerializeToString()
        token = state.keyring.lease_token(lease.task_id, lease.attempt, lease.start_ns)
        offer = Offer(attempt=lease.attempt, lease_token=token)
        if state.agent(lease.agent_id).spec.api_access != API_ACCESS_NONE:
            offer.attempt_token = state.keyring.attempt_token(lease.lease_id)
        if task.secrets or lease.agent_id in state.agent_secrets:
            values, missing = use.values_for(state, task, lease.agent_id)
            offer.secrets.update(values)
            offer.missing_secrets.extend(missing)
        stamp(offer.expire_time, lease.expire_ns)
        set_duration(offer.ttl_remaining, max(0, lease.expire_ns - state.now_ns))
        offers.append(field(1, field(_TASK, data + state.content(lease.task_id)) + offer.SerializeToString()))
    return b"".join(offers) + int_field(2, state.revision)
