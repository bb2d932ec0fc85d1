"""Rules: what they match, what they may say, and that every use is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_QUESTION,
    APPROVAL_KIND_TASK_START,
    APPROVAL_KIND_TOOL_PERMISSION,
    RISK_LEVEL_HIGH,
    RULE_EFFECT_APPROVE,
    RULE_EFFECT_DENY,
    RULE_EFFECT_REQUIRE,
    ApprovalContent,
    ApprovalRule,
    ApprovalRuleSpec,
    CreateApprovalRuleRequest,
    DeleteApprovalRuleRequest,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, APPROVAL_STATE_PENDING, ApprovalPolicy
from kapell.v1.watch_pb2 import EVENT_KIND_APPROVAL_RULE_USED
from kapell_server.domain.approvals.patterns import matches_command, matches_paths, touches_command
from kapell_server.domain.copied import copied
from kapell_server.domain.times import SECOND, stamp

from tests.domain.asking import ALICE, ASK, FOUR_EYES, ask, how, rule, seen, state_of, waiting
from tests.domain.world import START_NS, World


def approve(world: World, **spec: Any) -> ApprovalRule:
    return rule(world, by=ALICE, effect=RULE_EFFECT_APPROVE, **spec)


def is_approved(world: World, task_id: str, **said: Any) -> bool:
    return ask(world, task_id, **said).state == APPROVAL_STATE_APPROVED


@pytest.mark.parametrize(
    ("pattern", "command", "matches"),
    [
        ("git status", "git status", True),
        ("git *", "git log --oneline", True),
        ("git *", "git   log", True),
        ("git *", "git", False),
        ("git *", "git status; rm -rf /", False),
        ("git *", "git status && git log", True),
        ("git *", "git status | sh", False),
        ("git *", "git log $(rm -rf /)", False),
        ("git *", "git log `id`", False),
        ("git *", "git log > /etc/passwd", False),
        ("git *", "git log > /dev/null", True),
        ("git *", "GIT_PAGER=evil git log", False),
        ("git *", "git log 'a; b'", True),
        ("git *", 'git commit -m "it\'s done"', True),
        ("git *", "git log\nrm -rf /", False),
        ("git *", "git log \r#; rm -rf /", False),
        ("git *", "git log \\\n#; rm -rf /", True),
        ("git *", "X+=1 git log", False),
        ("git *", 'git $"log"', False),
        ("git *", "git log & rm x", False),
        ("git *", "/tmp/git log", False),
        ("git *", "sudo git log", False),
        ("git *", "git log $HOME", False),
        ("git *", "git {log,status}", False),
        ("git *", "git log 'unterminated", False),
        ("git *", "git log <(id)", False),
        ("git *", "gi\\t log", True),
        ("make ?", "make a", True),
        ("make ?", "make ab", False),
        ("make [a]", "make a", False),
        ("*", "anything at all", True),
        ("*", "echo $(id)", False),
        ("echo $(id)", "echo $(id)", True),
        ("sh -c *", "sh -c 'rm x'", False),
        ("a.c", "abc", False),
    ],
)
def test_a_pattern_of_a_command_speaks_of_what_would_run(pattern: str, command: str, matches: bool) -> None:
    assert matches_command([pattern], command) is matches


def test_a_request_without_a_command_matches_rules_without_one() -> None:
    assert matches_command([], "")
    assert not matches_command(["*"], "")
    assert not matches_command([], "ls")


@pytest.mark.parametrize(
    ("patterns", "paths", "matches"),
    [
        (["src/**"], ["src/a.py", "src/b/c.py"], True),
        (["src/*"], ["src/b/c.py"], False),
        (["src/**"], ["src/../etc/passwd"], False),
        (["src/**"], ["/srv/shop/src/a.py"], True),
        (["src/**"], ["src/a.py", "docs/b.md"], False),
        (["**/*.md"], ["README.md", "docs/a/b.md"], True),
        (["/etc/*"], ["/etc/hosts"], True),
        ([], ["src/a.py"], True),
        ([], ["/etc/hosts"], False),
        ([], ["../other"], False),
        ([], ["~/.ssh/id_rsa"], False),
        (["src/*.py"], ["src/a.py/../../x"], False),
    ],
)
def test_a_pattern_of_a_path_speaks_of_where_it_leads(patterns: list[str], paths: list[str], matches: bool) -> None:
    assert matches_paths(patterns, paths, "/srv/shop", "") is matches


def test_a_rule_that_refuses_needs_one_part_only() -> None:
    assert touches_command(["rm *"], "ls && rm x")
    assert touches_command(["rm *"], "echo $(rm x)")
    assert touches_command(["rm *"], "sh -c 'rm x'")
    assert not touches_command(["rm *"], "echo 'rm x'")


def test_a_rule_decides_at_once_and_is_recorded() -> None:
    world = World()
    task_id = world.running()
    made = approve(world, tool="bash", commands=["make*"])

    approval = ask(world, task_id, command="make test")

    [decision] = approval.decisions
    assert (decision.rule_id, decision.approves, decision.decider.id) == (made.rule_id, True, "rule")
    assert seen(world, "approval.") == ["approval.rule_created", "approval.decided", "approval.rule_used"]
    used = world.rows.standing["approval_rule", made.rule_id]
    assert isinstance(used, ApprovalRule)
    assert used.uses == 1
    assert [entry.rule_id for entry in world.rows.approval_audit.values()] == [made.rule_id, made.rule_id]
    assert not world.task(task_id).HasField("waiting")


def test_a_rule_that_refuses_comes_first() -> None:
    world = World()
    task_id = world.running()
    approve(world, commands=["make*"])
    rule(world, by=ALICE, effect=RULE_EFFECT_DENY, commands=["make deploy*"], reason="not on Fridays")

    approval = ask(world, task_id, command="make deploy-all")

    assert (how(world, approval.approval_id), approval.decisions[0].comment) == ("REJECTED", "not on Fridays")
    assert is_approved(world, task_id, command="make test")


def test_what_is_riskier_than_a_rule_may_approve_is_for_people() -> None:
    world = World()
    task_id = world.running()
    approve(world, commands=["rm *"])
    approve(world, commands=["chmod *"], max_risk=RISK_LEVEL_HIGH)

    assert not is_approved(world, task_id, command="rm -rf build")
    assert is_approved(world, task_id, command="rm notes.txt")
    assert is_approved(world, task_id, command="chmod 777 x")


def test_a_rule_without_a_command_does_not_let_commands_pass() -> None:
    world = World()
    task_id = world.running()
    approve(world, tool="edit")
    approve(world, paths=["src/**"])

    assert not is_approved(world, task_id, content=ApprovalContent(tool="edit", command="make"))
    assert not is_approved(world, task_id, content=ApprovalContent(tool="x", command="make", paths=["src/a"]))
    assert is_approved(world, task_id, content=ApprovalContent(tool="edit", working_directory="/w", paths=["a"]))
    assert not is_approved(world, task_id, content=ApprovalContent(tool="edit", working_directory="/w", paths=["/a"]))


def test_scopes_hold_a_rule_to_a_task_a_tree_or_an_agent_type() -> None:
    world = World()
    one, other = world.running(), world.running()
    child_agent = world.register("shell")
    child = world.create(parent_task_id=one)
    assert world.lease(child_agent) == child
    approve(world, task_id=one, commands=["ls"])
    approve(world, root_task_id=one, commands=["pwd"])
    approve(world, agent_type="only-*", commands=["id"])

    assert [is_approved(world, task, command="ls") for task in (one, other, child)] == [True, False, False]
    assert [is_approved(world, task, command="pwd") for task in (one, other, child)] == [True, False, True]
    assert [is_approved(world, task, command="id") for task in (one, other, child)] == [True, True, False]


def test_a_rule_ends_with_its_time_its_uses_or_its_revocation() -> None:
    world = World()
    task_id = world.running()
    until = Timestamp()
    stamp(until, START_NS + 5 * SECOND)
    approve(world, commands=["a"], expire_time=until)
    approve(world, commands=["b"], max_uses=1)
    gone = approve(world, commands=["c"])

    assert [is_approved(world, task_id, command=name) for name in "abc"] == [True, True, True]
    world.do(DeleteApprovalRuleRequest(rule_id=gone.rule_id))
    world.now_ns += 6 * SECOND

    assert [is_approved(world, task_id, command=name) for name in "abc"] == [False, False, False]
    with world.refuses("APPROVAL_NOT_FOUND"):
        world.do(DeleteApprovalRuleRequest(rule_id=gone.rule_id))


def test_a_rule_approves_and_refuses_starts() -> None:
    world = World()
    rule(world, effect=RULE_EFFECT_APPROVE, kinds=[APPROVAL_KIND_TASK_START], agent_type="shell")
    rule(world, effect=RULE_EFFECT_DENY, kinds=[APPROVAL_KIND_TASK_START], agent_type="deploy", reason="closed")

    free = world.create("shell", prompt="p", approval=ASK)
    refused = world.create("deploy", prompt="p", approval=ASK)

    assert (state_of(world, free), state_of(world, refused)) == ("QUEUED", "FAILED")
    assert world.task(refused).failure.message.endswith("closed")
    assert list(world.state.approvals.pending()) == []


def test_a_rule_has_no_more_say_than_who_wrote_it() -> None:
    world = World()
    rule(world, effect=RULE_EFFECT_APPROVE, kinds=[APPROVAL_KIND_TASK_START], agent_type="shell")

    own = world.create("shell", prompt="p", approval=FOUR_EYES)
    named = world.create("shell", prompt="p", approval=ApprovalPolicy(approvers=["user:alice"]))
    voted = world.create("shell", prompt="p", approval=ApprovalPolicy(quorum=2))

    assert [state_of(world, one) for one in (own, named, voted)] == ["AWAITING_APPROVAL"] * 3
    assert waiting(world, own).state == APPROVAL_STATE_PENDING


def test_questions_are_for_people() -> None:
    world = World()
    task_id = world.running()
    approve(world, task_id=task_id)

    found = ask(world, task_id, kind=APPROVAL_KIND_QUESTION, content=ApprovalContent())

    assert found.state == APPROVAL_STATE_PENDING


@pytest.mark.parametrize(
    "spec",
    [
        ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE),
        ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, agent_type="shell"),
        ApprovalRuleSpec(effect=RULE_EFFECT_REQUIRE, commands=["ls"]),
        ApprovalRuleSpec(effect=RULE_EFFECT_REQUIRE, kinds=[APPROVAL_KIND_TOOL_PERMISSION]),
        ApprovalRuleSpec(effect=RULE_EFFECT_DENY, policy=ASK, tool="x"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(spec: ApprovalRuleSpec) -> None:
    world = World()

    with world.refuses("REQUEST_INVALID"):
        world.do(CreateApprovalRuleRequest(spec=spec))


def test_an_id_is_taken_once() -> None:
    world = World()
    spec = ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, tool="x")
    world.do(CreateApprovalRuleRequest(rule_id="rule_a", spec=spec))

    with world.refuses("ID_TAKEN"):
        world.do(CreateApprovalRuleRequest(rule_id="rule_a", spec=spec))


OPEN = [
    {"tool": "*"},
    {"tool": "**"},
    {"tool": "?*"},
    {"commands": ["*"]},
    {"commands": ["git *", "*"]},
    {"commands": ["* --version"]},
    {"commands": ["?? *"]},
    {"tool": "bash", "commands": ["*"]},
    {"agent_type": "shell", "commands": ["*"]},
    {"paths": ["/**"]},
    {"paths": ["src/**", "**"]},
    {"kinds": [APPROVAL_KIND_TASK_START], "agent_type": "*"},
    {"kinds": [APPROVAL_KIND_TASK_START], "tool": "bash"},
]
"""Rules that keep nothing out, or no program."""


@pytest.mark.parametrize("spec", OPEN, ids=str)
def test_a_rule_that_approves_anything_says_so_or_is_refused(spec: dict[str, Any]) -> None:
    world = World()
    said = ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, **spec)

    with world.refuses("REQUEST_INVALID"):
        world.do(CreateApprovalRuleRequest(spec=said))
    said.anything = True
    said.max_risk = RISK_LEVEL_HIGH
    with world.refuses("REQUEST_INVALID"):
        world.do(CreateApprovalRuleRequest(spec=said))
    said.ClearField("max_risk")
    world.do(CreateApprovalRuleRequest(spec=said))


@pytest.mark.parametrize("scope", [{"task_id": "task_a"}, {"root_task_id": "task_a"}, {"template_id": "greet"}])
def test_a_rule_for_one_task_tree_or_template_may_approve_all_of_it(scope: dict[str, str]) -> None:
    world = World()

    world.do(CreateApprovalRuleRequest(spec=ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, commands=["*"], **scope)))


def test_refusing_or_demanding_may_be_for_anything() -> None:
    world = World()

    for effect in (RULE_EFFECT_DENY, RULE_EFFECT_REQUIRE):
        world.do(CreateApprovalRuleRequest(spec=ApprovalRuleSpec(effect=effect)))
    with world.refuses("REQUEST_INVALID"):
        world.do(CreateApprovalRuleRequest(spec=ApprovalRuleSpec(effect=RULE_EFFECT_DENY, anything=True)))


@pytest.mark.parametrize(
    ("command", "by_rule"), [("git status", True), ("frobnicate", True), ("rm -rf build", False), ("rm -rf /", False)]
)
def test_not_even_a_rule_for_anything_approves_what_is_of_high_risk(command: str, by_rule: bool) -> None:
    world = World()
    task_id = world.running()
    approve(world, tool="*", commands=["*"], anything=True)

    assert is_approved(world, task_id, command=command) == by_rule


def test_what_is_critical_is_never_for_a_rule() -> None:
    world = World()
    task_id = world.running()
    approve(world, commands=["rm *"], max_risk=RISK_LEVEL_HIGH)

    assert is_approved(world, task_id, command="rm -rf build")
    assert not is_approved(world, task_id, command="rm -rf /")


def test_a_rule_of_an_older_version_that_matches_anything_decides_nothing() -> None:
    world = World()
    task_id = world.running()
    made = approve(world, commands=["git *"])
    older = copied(made)
    older.spec.commands[:] = ["*"]
    world.state.standing.put(older, EVENT_KIND_APPROVAL_RULE_USED, ("spec",))

    assert not is_approved(world, task_id, command="git status")
