"""The numbers that rules depend on. All times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Limits and durations; the defaults are those of the product."""

    lease_duration: float = 10.0
    """How long a lease lives without being renewed."""
    heartbeat_interval: float = 3.0
    """How often agents are asked to report."""
    offer_confirm: float = 10.0
    """How long an offer may stay without a sign that it arrived."""
    cancel_grace: float = 90.0
    """How long an agent that was told to cancel may keep the task before it is taken away."""
    start_timeout: float = 30.0
    """How long a spawned agent may take until it registers."""
    silent_after: float = 7.0
    """Without a heartbeat for so long an agent is shown as SILENT."""
    stalled_shown_after: float = 600.0
    """An agent whose attempts have no news for so long is shown as STALLED."""
    not_polling_after: float = 120.0
    """An agent with a free slot that asks for no task for so long is shown as NOT_POLLING."""
    report_within: float = 60.0
    """How long an attempt whose program has ended may go without its outcome."""
    forget_after: float = 600.0
    """After so long without a heartbeat an external agent is given up."""
    request_id_lifetime: float = 86_400.0
    """How long a request_id is remembered."""
    starving_after: float = 600.0
    """A task that is QUEUED for so long gets every fourth turn of each agent, whatever its priority."""
    queue_age_alert: float = 900.0
    """A task that is QUEUED for so long fires an alert about its type."""
    approval_old_alert: float = 3_600.0
    """An approval that waits for so long fires an alert."""
    keep_tasks_for: float = 30 * 86_400.0
    """How long finished tasks are kept; 0 for ever."""
    keep_tasks: int = 1_000_000
    """How many finished tasks are kept; 0 for all."""
    keep_events_for: float = 7 * 86_400.0
    """How long events are kept; 0 for ever."""
    keep_events: int = 2_000_000
    """How many events are kept; 0 for all."""
    max_agents: int = 1_000
    """Agents that have not ended."""
    max_schedules: int = 10_000
    """Schedules there may be; all are in memory."""
    max_locks: int = 1_000_000
    """Locks that are held; all are in memory."""
    max_lock_waits: int = 100_000
    """Requests that wait for locks."""
    max_lock_tickets: int = 100_000
    """Durable places in the queue, those included that ended within the hour."""
    max_lock_sessions: int = 100_000
    """Sessions that are open."""
    max_content_bytes: int = 262_144
    """Most bytes of a task's input, and of its result."""
    max_offer_bytes: int = 2_097_152
    """Most bytes of content in one answer of LeaseTasks."""
    max_task_depth: int = 8
    """How many parents may be above a task."""
    max_tasks_per_root: int = 1_000
    """Most tasks below one root."""
