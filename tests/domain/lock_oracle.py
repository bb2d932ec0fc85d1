"""What the table of locks must do, said naively: no tree, no order kept, no memory of who blocks whom."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

Items = tuple[tuple[str, bool], ...]


def clash(one: tuple[str, bool], other: tuple[str, bool]) -> bool:
    a, b = one[0].split("/"), other[0].split("/")
    return (one[1] or other[1]) and (a[: len(b)] == b or b[: len(a)] == a)


@dataclass
class Oracle:
    held: dict[tuple[str, str], bool] = field(default_factory=dict)
    queue: dict[str, tuple[tuple[int, str], str, Items]] = field(default_factory=dict)

    def holders(self, owner: str, items: Items) -> set[str]:
        return {o for (o, p), mode in self.held.items() if o != owner and any(clash((p, mode), i) for i in items)}

    def ahead(self, order: tuple[int, str], owner: str, items: Items) -> set[str]:
        earlier = [(o, wanted) for at, o, wanted in self.queue.values() if at < order and o != owner]
        return {o for o, wanted in earlier if any(clash(a, b) for a in wanted for b in items)}

    def reaches(self, start: str, goal: str, *, hard: bool = False) -> bool:
        seen: set[str] = set()
        ways = {start}
        while ways:
            seen |= ways
            mine = [wait for wait in self.queue.values() if wait[1] in ways]
            ways = {to for at, o, items in mine for to in self.holders(o, items)}
            ways |= {to for at, o, items in mine for to in self.ahead(at, o, items) if not hard}
            if goal in ways:
                return True
            ways -= seen
        return False

    def free(self, order: tuple[int, str], owner: str, items: Items) -> bool:
        ahead, has = self.ahead(order, owner, items), any(o == owner for o, _ in self.held)
        return not self.holders(owner, items) and all(has and self.reaches(o, owner) for o in ahead)

    def grant(self, owner: str, items: Items) -> bool:
        before = copy.copy(self.held)
        self.held |= {(owner, p): mode or before.get((owner, p), False) for p, mode in items}
        if self.reaches(owner, owner, hard=True):
            self.held = before
        return self.held is not before
