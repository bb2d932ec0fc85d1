"""Finds circles in graphs of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def find_cycle(graph: Mapping[str, Sequence[str]]) -> list[str]:
    """The nodes of a circle, each followed by one that it depends on; empty where there is none."""
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        trail: dict[str, None] = {start: None}
        pending = [iter(graph[start])]
        while pending:
            following = next(pending[-1], None)
            if following is None:
                pending.pop()
                done.add(trail.popitem()[0])
            elif following in trail:
                steps = list(trail)
                return steps[steps.index(following) :]
            elif following not in done:
                trail[following] = None
                pending.append(iter(graph[following]))
    return []
