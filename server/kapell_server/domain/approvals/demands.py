"""Who demands that the start of a task be approved, and all of these demands together as one policy.

A task may stand under several: its own or that of its template, those of tasks above it, those of rules. None takes
the place of another. So whoever makes a child with a policy of its own, or of a template, can only add to what is
demanded already: what satisfies `combined` satisfies each demand by itself, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kapell.v1.approval_policy_pb2 import (
    EXPIRY_ACTION_DENY,
    EXPIRY_ACTION_ESCALATE,
    EXPIRY_ACTION_HOLD,
    ApprovalDemand,
    ApprovalGroup,
    ApprovalPolicy,
    ExpiryAction,
    TaskApproval,
)
from kapell.v1.watch_pb2 import ACTOR_KIND_AGENT, ACTOR_KIND_SYSTEM, Actor

from kapell_server.domain.times import SECOND, duration_ns, set_duration

DEFAULT_TIMEOUT = 86_400 * SECOND
MOST_DEMANDS = 64
"""Most demands that one task may stand under."""
_LONGEST_REASON = 500


class Electorate(NamedTuple):
    """Who may decide: those named, and every user where `everyone` says so. Agents only by name."""

    everyone: bool
    names: frozenset[str]

    def has(self, actor: Actor) -> bool:
        """Whether this one is among them. The system always is."""
        if actor.kind == ACTOR_KIND_AGENT:
            return f"agent:{actor.id}" in self.names
        return actor.kind == ACTOR_KIND_SYSTEM or self.everyone or f"user:{actor.id}" in self.names

    def is_within(self, other: Electorate) -> bool:
        """Whether all of these are among those."""
        if self.everyone and not other.everyone:
            return False
        return all(name in other.names or (other.everyone and name.startswith("user:")) for name in self.names)


def electorate(group: ApprovalGroup, *, escalated: bool) -> Electorate:
    """Who may decide for a group, before and after it was escalated."""
    names, everyone = {*group.approvers}, not group.approvers
    if escalated and group.escalates:
        names.update(group.escalate_to)
        everyone = everyone or not group.escalate_to
    return Electorate(everyone, frozenset(names))


def groups(policy: ApprovalPolicy) -> Iterator[ApprovalGroup]:
    """Those who must approve, each group by itself."""
    yield ApprovalGroup(
        approvers=policy.approvers,
        quorum=policy.quorum or 1,
        escalate_to=policy.escalate_to,
        escalates=policy.on_expiry == EXPIRY_ACTION_ESCALATE,
    )
    yield from policy.also


def missing(policy: ApprovalPolicy, voters: Iterable[Actor], *, escalated: bool) -> list[tuple[int, Electorate]]:
    """How many more must approve, and who may; empty where these voters are enough."""
    distinct = {(voter.kind, voter.id): voter for voter in voters}.values()
    found = []
    for group in groups(policy):
        who = electorate(group, escalated=escalated)
        left = group.quorum - sum(who.has(voter) for voter in distinct)
        if left > 0:
            found.append((left, who))
    return found


def demands_of(approval: TaskApproval) -> list[ApprovalDemand]:
    """All demands that a task stands under; none where nobody asks for an approval."""
    if not approval.demanded_by:
        return []
    first = ApprovalDemand(policy=approval.policy, demanded_by=approval.demanded_by, author=approval.author)
    return [first, *approval.also]


def keep(approval: TaskApproval, demands: Sequence[ApprovalDemand]) -> None:
    """Writes demands, at least one, into what a task keeps; of those that say the same the first."""
    kept: list[ApprovalDemand] = []
    for demand in demands:
        if all((one.policy, one.author) != (demand.policy, demand.author) for one in kept):
            kept.append(demand)
    first, *rest = kept
    approval.policy.CopyFrom(first.policy)
    approval.demanded_by = first.demanded_by
    approval.author.CopyFrom(first.author)
    del approval.also[:]
    approval.also.extend(rest)


def inherited(above: Iterable[ApprovalDemand]) -> list[ApprovalDemand]:
    """What a child stands under because its parent does."""
    return [
        ApprovalDemand(policy=one.policy, demanded_by="parent", author=one.author)
        for one in above
        if one.policy.include_children
    ]


def combined(demands: Sequence[ApprovalDemand], creator: Actor) -> ApprovalPolicy:
    """All demands, at least one, as one policy for a task that `creator` has made."""
    policies = [demand.policy for demand in demands]
    on_expiry = _strictest(policies)
    kept = _needed([next(groups(policy)) for policy in policies], on_expiry)
    # The first group stands in the policy itself, whose on_expiry says that it escalates: so one that does comes first.
    kept.sort(key=lambda group: not group.escalates)
    policy = ApprovalPolicy(
        approvers=kept[0].approvers,
        quorum=kept[0].quorum,
        escalate_to=kept[0].escalate_to,
        allow_requester=all(_lets_requester(demand, creator) for demand in demands),
        on_expiry=on_expiry,
        include_children=any(one.include_children for one in policies),
        reason="; ".join(dict.fromkeys(one.reason for one in policies if one.reason))[:_LONGEST_REASON],
        also=kept[1:],
    )
    if any(one.HasField("timeout") for one in policies):
        set_duration(policy.timeout, min(map(_timeout, policies)))
    return policy


def _needed(found: Sequence[ApprovalGroup], on_expiry: ExpiryAction.ValueType) -> list[ApprovalGroup]:
    """The groups without those that are met wherever another one is."""
    kept: list[ApprovalGroup] = []
    for group in found:
        if on_expiry == EXPIRY_ACTION_ESCALATE and not group.approvers and not group.escalates:
            group.escalates = True  # Everybody stays everybody, and it may stand for one that does escalate.
        if not any(_implies(one, group) for one in kept):
            kept = [one for one in kept if not _implies(group, one)]
            kept.append(group)
    return kept


def _implies(group: ApprovalGroup, other: ApprovalGroup) -> bool:
    return (
        group.quorum >= other.quorum
        and group.escalates >= other.escalates
        and all(
            electorate(group, escalated=escalated).is_within(electorate(other, escalated=escalated))
            for escalated in (False, True)
        )
    )


def _lets_requester(demand: ApprovalDemand, creator: Actor) -> bool:
    if demand.policy.HasField("allow_requester"):
        return demand.policy.allow_requester
    return demand.author.kind == ACTOR_KIND_SYSTEM or demand.author == creator


def _strictest(policies: Sequence[ApprovalPolicy]) -> ExpiryAction.ValueType:
    """DENY before ESCALATE before HOLD, which is the default of what has not started."""
    said = {policy.on_expiry for policy in policies}
    for action in (EXPIRY_ACTION_DENY, EXPIRY_ACTION_ESCALATE):
        if action in said:
            return action
    return EXPIRY_ACTION_HOLD


def _timeout(policy: ApprovalPolicy) -> int:
    return duration_ns(policy.timeout) if policy.HasField("timeout") else DEFAULT_TIMEOUT
