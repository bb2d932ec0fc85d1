"""Who waits for whom, drawn: as a tree below those who hold everybody up, in dot, and as mermaid."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kapell.cli.lock_views import holder, mode_word
from kapell.cli.terminal import Terminal, visible
from kapell.cli.times import age

if TYPE_CHECKING:
    from kapell.v1.lock_pb2 import GetLockGraphResponse, LockGraphEdge, LockGraphNode

_HELD, _BEFORE, _CHILD, _DEPENDENCY = 1, 2, 3, 4


def why(edge: LockGraphEdge) -> str:
    """Why one waits for the other, in words."""
    if edge.kind == _CHILD:
        return "waits for its child"
    if edge.kind == _DEPENDENCY:
        return "depends on it"
    wanted = f"wants {edge.wanted_path} {mode_word(edge.wanted_mode)}"
    if edge.path == edge.wanted_path and edge.mode == edge.wanted_mode and edge.kind == _HELD:
        return wanted
    in_the_way = f"{edge.path} {mode_word(edge.mode)}"
    return f"{wanted}, {in_the_way} {'is held' if edge.kind == _HELD else 'was asked for before'}"


class Graph:
    """The graph, ready to be drawn."""

    def __init__(self, answer: GetLockGraphResponse) -> None:
        self._answer = answer
        self._nodes = {node.node_id: node for node in answer.nodes}
        self._behind: dict[str, list[LockGraphEdge]] = defaultdict(list)
        self._ahead: dict[str, list[str]] = defaultdict(list)
        for edge in answer.edges:
            self._behind[edge.to_node_id].append(edge)
            self._ahead[edge.from_node_id].append(edge.to_node_id)

    def count_behind(self, node_id: str) -> int:
        """How many wait for it, for those who wait for it, and so on."""
        return len(self._everybody_behind(node_id) - {node_id})

    def roots(self) -> list[str]:
        """Those who wait for nobody and hold somebody up: who holds up most comes first."""
        found = [node_id for node_id in self._behind if not self._ahead[node_id]]
        return sorted(found, key=lambda node_id: (-self.count_behind(node_id), node_id))

    def cycles(self) -> list[list[str]]:
        """Rings of those who wait for each other; each begins with its smallest id. One for each knot."""
        found: list[list[str]] = []
        seen: set[str] = set()
        for node_id in sorted(self._knotted()):
            if node_id not in seen and (ring := self._ring(node_id)):
                seen.update(ring)
                found.append(ring)
        return found

    def tree(self, terminal: Terminal) -> Iterator[str]:
        """Lines: each root, and below it those who wait for it. Who waits for several is drawn once."""
        drawn: set[str] = set()
        for ring in self.cycles():
            names = " -> ".join([*ring, ring[0]])
            yield terminal.out(f"deadlock: {visible(names)}", "red")
            yield f"  to break it: kapell task cancel {ring[0]}, or kapell lock release --force on one of its locks"
        for root in self.roots():
            count = self.count_behind(root)
            who = visible(self._who(root))
            yield f"{terminal.out(who, 'bold')}  holds up {count}"
            yield from self._below(root, drawn, terminal)
        if self._answer.truncated:
            yield terminal.out("There is more than this; name a path.", "dim")

    def dot(self) -> Iterator[str]:
        """The graph for Graphviz; arrows go from who waits to whom he waits for."""
        yield "digraph locks {"
        yield "  rankdir=LR; node [shape=box];"
        for node_id in sorted(self._nodes.keys() | self._ids()):
            yield f"  {json.dumps(node_id)} [label={json.dumps(self._who(node_id), ensure_ascii=False)}];"
        for edge in self._answer.edges:
            label = json.dumps(why(edge), ensure_ascii=False)
            yield f"  {json.dumps(edge.from_node_id)} -> {json.dumps(edge.to_node_id)} [label={label}];"
        yield "}"

    def mermaid(self) -> Iterator[str]:
        """The graph as a mermaid flowchart."""
        names = {node_id: f"n{at}" for at, node_id in enumerate(sorted(self._nodes.keys() | self._ids()))}
        yield "flowchart LR"
        for node_id, name in names.items():
            yield f'  {name}["{_mermaid(self._who(node_id))}"]'
        for edge in self._answer.edges:
            yield f'  {names[edge.from_node_id]} -->|"{_mermaid(why(edge))}"| {names[edge.to_node_id]}'

    def _below(self, root: str, drawn: set[str], terminal: Terminal) -> Iterator[str]:
        branch, last_branch, trunk = ("├─ ", "└─ ", "│  ") if terminal.marks else ("|- ", "`- ", "|  ")
        # By hand, not by recursion: a chain may be a thousand long.
        stack = self._lines_of(root, "", drawn)
        while stack:
            edge, indent, is_last = stack.pop()
            waiter = edge.from_node_id
            again = "  (see above)" if waiter in drawn and self._behind[waiter] else ""
            text = visible(f"{self._who(waiter)}  {why(edge)}{self._since(waiter)}{again}")
            yield f"{indent}{last_branch if is_last else branch}{text}"
            stack += self._lines_of(waiter, indent + ("   " if is_last else trunk), drawn)

    def _lines_of(self, node_id: str, indent: str, drawn: set[str]) -> list[tuple[LockGraphEdge, str, bool]]:
        """The lines below a node, the last first; none where it was drawn before."""
        if node_id in drawn:
            return []
        drawn.add(node_id)
        edges = self._behind[node_id]
        return [(edge, indent, at == len(edges) - 1) for at, edge in enumerate(edges)][::-1]

    def _who(self, node_id: str) -> str:
        node = self._nodes.get(node_id)
        return holder(node.owner) if node is not None and node.HasField("owner") else node_id

    def _since(self, node_id: str) -> str:
        node: LockGraphNode | None = self._nodes.get(node_id)
        return f", for {age(node.wait_time)}" if node is not None and node.wait_time.seconds else ""

    def _ids(self) -> set[str]:
        return {id for edge in self._answer.edges for id in (edge.from_node_id, edge.to_node_id)}

    def _everybody_behind(self, node_id: str) -> set[str]:
        found: set[str] = set()
        unseen = [node_id]
        while unseen:
            current = unseen.pop()
            if current not in found:
                found.add(current)
                unseen += [edge.from_node_id for edge in self._behind[current]]
        return found

    def _knotted(self) -> set[str]:
        """Those who might wait for themselves: what is left when all who wait for nobody left are taken away."""
        ahead = {node_id: set(ids) for node_id, ids in self._ahead.items() if ids}
        free = [node_id for node_id in self._behind if node_id not in ahead]
        while free:
            gone = free.pop()
            for edge in self._behind[gone]:
                waiting = ahead.get(edge.from_node_id)
                if waiting is not None:
                    waiting.discard(gone)
                    if not waiting:
                        del ahead[edge.from_node_id]
                        free.append(edge.from_node_id)
        return set(ahead)

    def _ring(self, start: str) -> list[str]:
        """The shortest way from `start` back to itself; empty where there is none."""
        before: dict[str, str] = {}
        unseen = [start]
        for current in unseen:
            for ahead in self._ahead[current]:
                if ahead == start:
                    ring = [current]
                    while ring[-1] != start:
                        ring.append(before[ring[-1]])
                    return ring[::-1]
                if ahead not in before:
                    before[ahead] = current
                    unseen.append(ahead)
        return []


def _mermaid(text: str) -> str:
    """Text between quotes: mermaid knows no escapes but entities."""
    return visible(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
