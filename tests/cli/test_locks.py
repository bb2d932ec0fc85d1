"""`kapell lock`: as a user and as a script types it. The guard has tests of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from kapell.cli.lock_graph import Graph
from kapell.cli.terminal import Terminal
from kapell.v1 import lock_pb2 as pb

from tests.cli.shell import Result, Shell, compare, forget

GRANT = re.compile(r"\b(grant|lock|ticket|session)_[0-9a-z]{26}\b")
PLAIN = Terminal(is_tty=True, colour_out=False, colour_err=False, live=False, marks=True, width=80)


@pytest.fixture(autouse=True)
def all_free(shell: Shell) -> Iterator[None]:
    """Every test begins and ends without locks."""
    yield
    if held := shell.pipe("lock", "list", "-o", "id").out.split():
        shell.pipe("lock", "release", *held, "--force", "--reason", "the test is over", "--yes")


def acquire(shell: Shell, *args: str) -> str:
    """Acquires a lock; its id."""
    done = shell.pipe("lock", "acquire", *args, "-o", "id")
    assert done.code == 0, done.err
    return done.out.strip()


def test_a_lock_is_acquired_listed_renewed_and_released(shell: Shell) -> None:
    made = json.loads(shell.pipe("lock", "acquire", "web/src", "--ttl", "5m", "--note", "format", "-o", "json").out)
    listed = shell.terminal("lock", "list", NO_COLOR="1").lines

    assert (made["path"], int(made["fencingToken"]) > 0) == ("web/src", True)
    assert listed[0].split() == ["PATH", "MODE", "HOLDER", "SINCE", "EXPIRES", "WAITERS"]
    assert listed[1].startswith("web/src  exclusive  admin (format)")
    assert shell.pipe("lock", "renew", made["lockId"], "-o", "id").out.strip() == made["lockId"]
    assert shell.pipe("lock", "release", made["lockId"], "-o", "id").out.strip() == made["lockId"]
    assert shell.pipe("lock", "list").out == ""
    assert "No lock is held" in shell.terminal("lock", "list").out


def test_on_a_terminal_acquire_prints_the_id_and_the_token(shell: Shell) -> None:
    shown = shell.terminal("lock", "acquire", "web/src", NO_COLOR="1").out

    assert shown.startswith("lock_")
    assert "token " in shown
    assert "expires in" in shown


def test_a_held_lock_is_refused_with_its_holder(shell: Shell) -> None:
    acquire(shell, "web", "--note", "release")

    refused = shell.pipe("lock", "acquire", "web/src/a.py")

    assert refused.code == 5
    assert "admin" in refused.err
    assert "kapell lock list --path web" in refused.err


def test_shared_locks_stand_beside_each_other(shell: Shell) -> None:
    acquire(shell, "web", "--shared")

    assert shell.pipe("lock", "acquire", "web/src", "--shared").code == 0
    assert shell.pipe("lock", "acquire", "web/src").code == 5


def test_a_ticket_keeps_the_place_and_is_cancelled(shell: Shell) -> None:
    acquire(shell, "web")

    ticket = acquire(shell, "web/src", "--keep-queued", "--note", "me, too")
    waiting = shell.pipe("lock", "waiters").out.rstrip("\n").split("\t")
    graph = shell.terminal("lock", "graph", NO_COLOR="1").out

    assert ticket.startswith("ticket_")
    assert waiting[:2] == ["web/src", "admin (me, too)"]
    assert "web, held by admin" in waiting[4]
    assert "holds up 1" in graph
    assert "wants web/src exclusive, web exclusive is held" in graph
    assert shell.pipe("lock", "list").out.split("\t")[5].strip() == "1"
    assert shell.pipe("lock", "graph", "--as", "dot").out.startswith("digraph locks {")
    assert shell.pipe("lock", "graph", "--as", "mermaid").out.startswith("flowchart LR")
    assert len(json.loads(shell.pipe("lock", "graph", "--as", "json").out)["edges"]) == 1
    assert shell.pipe("lock", "cancel", ticket).code == 0
    assert shell.pipe("lock", "waiters").out == ""


READING = {
    "lock-list": ("lock", "list"),
    "lock-waiters": ("lock", "waiters"),
    "lock-graph": ("lock", "graph"),
    "lock-graph-dot": ("lock", "graph", "--as", "dot"),
    "error-lock-held": ("lock", "acquire", "web/src"),
}


def test_transcripts(shell: Shell) -> None:
    acquire(shell, "web", "--note", "release", "--ttl", "12h")
    acquire(shell, "docs", "--shared", "--ttl", "12h")
    ticket = acquire(shell, "web/src", "docs", "--keep-queued", "--note", "format")

    for name, line in READING.items():
        told = [shell.terminal(*line, NO_COLOR="1"), shell.pipe(*line)]
        text = "".join(f"$ kapell {' '.join(line)}\n{one.out}{one.err}[exit {one.code}]\n" for one in told)
        compare(name, GRANT.sub("GRANT", forget(text, {})))
    shell.pipe("lock", "cancel", ticket)


def test_what_had_ended_before_its_release_is_told(shell: Shell) -> None:
    lock_id = acquire(shell, "web")
    shell.pipe("lock", "release", lock_id)

    again = shell.pipe("lock", "release", lock_id)

    assert again.code == 5
    assert "had ended before" in again.err


def test_a_forced_release_needs_a_reason_and_a_yes(shell: Shell) -> None:
    acquire(shell, "web/src")
    acquire(shell, "web/docs")
    acquire(shell, "web2")

    assert shell.pipe("lock", "release", "--force", "--path", "web", "--yes").code == 2
    assert shell.pipe("lock", "release", "--force", "--path", "web", "--reason", "x").code == 2
    dry = shell.pipe("lock", "release", "--force", "--path", "web", "--reason", "x", "--dry-run")
    assert "would take away 2 locks" in dry.err
    taken = shell.pipe("lock", "release", "--force", "--path", "web", "--reason", "its machine is gone", "--yes")
    assert len(taken.out.splitlines()) == 2
    assert [line.split("\t")[0] for line in shell.pipe("lock", "list").out.splitlines()] == ["web2"]
    assert "its machine is gone" in shell.pipe("event", "list", "-n", "1").out


def test_on_a_terminal_the_path_is_typed_before_locks_are_taken_away(shell: Shell) -> None:
    acquire(shell, "web/src")
    run = shell.open_terminal("lock", "release", "--force", "--path", "web", "--reason", "x", NO_COLOR="1")

    run.expect("web/src by admin")
    run.expect("Type web to go on")
    run.type("web\n")

    assert run.finish().code == 0
    assert shell.pipe("lock", "list").out == ""


@pytest.mark.parametrize(
    "line",
    [
        ("lock", "release"),
        ("lock", "release", "lock_1", "--reason", "x"),
        ("lock", "release", "lock_1", "--force"),
        ("lock", "acquire", "web", "--ttl", "1m", "--session", "session_1"),
        ("lock", "acquire", "web/../x"),
        ("lock", "run", "web"),
        ("lock", "run", "--", "true"),
        ("lock", "guard", "a", "--git"),
    ],
)
def test_wrong_usage_is_told(shell: Shell, line: tuple[str, ...]) -> None:
    assert shell.pipe(*line).code == 2


def run(shell: Shell, *args: str) -> Result:
    """Runs `kapell lock run` as a process: it takes signals."""
    process = shell.process("lock", "run", *args)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def test_a_command_runs_under_its_locks_and_gives_them_back(shell: Shell) -> None:
    done = run(shell, "web", "docs", "--", "sh", "-c", 'echo "$KAPELL_LOCKS"; kapell lock list; exit 3')

    known, *listed = done.out.splitlines()
    assert done.code == 3
    assert [lock["path"] for lock in json.loads(known)] == ["web", "docs"]
    assert len(listed) == 2
    assert shell.pipe("lock", "list").out == ""


def test_locks_of_an_outer_run_stay_known(shell: Shell) -> None:
    inner = ("kapell", "lock", "run", "docs", "--", "sh", "-c", 'echo "$KAPELL_LOCKS"')

    done = run(shell, "web", "--", *inner)

    assert [lock["path"] for lock in json.loads(done.out)] == ["docs", "web"]


def test_nothing_runs_while_somebody_else_has_the_lock(shell: Shell) -> None:
    acquire(shell, "web")

    done = run(shell, "web/src", "--wait", "0.2s", "--", "echo", "ran")

    assert (done.code, done.out) == (5, "")
    assert "admin holds web" in done.err


def test_a_command_that_loses_its_lock_is_ended(shell: Shell) -> None:
    process = shell.process("lock", "run", "web", "--", "sh", "-c", "echo begun; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"

    shell.pipe("lock", "release", "--force", "--path", "web", "--reason", "enough", "--yes")
    _, err = process.communicate(timeout=60)

    assert process.returncode == 5
    assert "taken away by an administrator: enough" in err


def test_a_program_that_is_not_there_is_told_as_a_shell_does(shell: Shell) -> None:
    assert run(shell, "web", "--", "/no/such/program").code == 127
    assert shell.pipe("lock", "list").out == ""


def edge(waiter: str, holder: str, kind: int = 1) -> pb.LockGraphEdge:
    return pb.LockGraphEdge(
        from_node_id=waiter,
        to_node_id=holder,
        kind=kind,  # type: ignore[arg-type]
        wanted_path="a",
        path="a",
    )


def graph(*edges: pb.LockGraphEdge) -> Graph:
    ids = {id for one in edges for id in (one.from_node_id, one.to_node_id)}
    nodes = [pb.LockGraphNode(node_id=id, owner=pb.LockOwner(task_id=id)) for id in sorted(ids)]
    return Graph(pb.GetLockGraphResponse(nodes=nodes, edges=edges))


def test_who_holds_up_most_comes_first_in_the_tree() -> None:
    drawn = graph(edge("b", "a"), edge("c", "b", 3), edge("e", "d"), edge("c", "a"))

    assert list(drawn.tree(PLAIN)) == [
        "a  holds up 2",
        "├─ b  wants a exclusive",
        "│  └─ c  waits for its child",
        "└─ c  wants a exclusive",
        "d  holds up 1",
        "└─ e  wants a exclusive",
    ]


def test_a_cycle_is_named_with_a_way_to_break_it() -> None:
    drawn = graph(edge("b", "a"), edge("a", "c", 3), edge("c", "b", 4), edge("z", "a"))

    lines = list(drawn.tree(PLAIN))
    assert lines[0] == "deadlock: a -> c -> b -> a"
    assert "kapell task cancel a" in lines[1]


def test_a_chain_may_be_long() -> None:
    drawn = graph(*(edge(f"n{at + 1}", f"n{at}") for at in range(3000)))

    assert sum(1 for _ in drawn.tree(PLAIN)) == 3001
    assert drawn.cycles() == []


def test_names_are_escaped_where_they_are_drawn() -> None:
    drawn = graph(edge('b"]\n<x>', "a"))

    assert '"b&quot;] &lt;x&gt;"' in "\n".join(drawn.mermaid())
    assert '"b\\"]\\n<x>"' in "\n".join(drawn.dot())
