"""A busy day of the model, drawn from one seed: hypothesis alone rarely draws long lines of like tasks."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.model.commands import CONCURRENCY_KEYS, KINDS
from tests.model.limits import NEVER, Limit
from tests.model.locks import SETS

IDS = [f"task_{letter}" for letter in "abcdefghijklmnop"]
_RATES = (None, (2, 5.0), (2, 5.0), (1, 3.0))
_STRATEGIES = ("WAIT", "WAIT", "WAIT", "WAIT", "CANCEL_IN_PROGRESS", "SKIP")


class Day:
    """What is asked for in the morning, and what each hour brings."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._kinds = self._random.choice((KINDS, KINDS[:1]))
        self._shares = self._random.choice(((), ("a", "b"), ("a", "b"), ("a", "b", "c")))
        self._keyed = self._random.random() < 0.6
        self._locked = self._random.random() < 0.5
        self._priorities = self._random.choice(((500,), (500, 500, 900)))
        self.hours = self._random.randint(4, 9)
        self.starves = self._random.random() < 0.15
        self._verbs = self._random.choice(
            (("complete",), ("complete", "complete", "release", "EXIT", "LIMITED", "cancel"))
        )

    def limits(self) -> list[tuple[Any, ...]]:
        """Limits of the keys; the queues are open."""
        draw = self._random.choice
        return [
            ("set_limit", key, Limit(most=draw((None, 1, 2)), strategy=draw(_STRATEGIES), rate=draw(_RATES)))
            for key in CONCURRENCY_KEYS
            if self._random.random() < 0.5
        ]

    def tasks(self) -> list[tuple[str, dict[str, Any]]]:
        """Tasks in a random order or share by share."""
        count = self._random.randint(4, 9)
        specs = [self.spec() for _ in range(count)]
        if self._random.random() < 0.5:
            specs.sort(key=lambda spec: str(spec["share"]))
        return list(zip(self._random.sample(IDS, count), specs, strict=True))

    def spec(self, **fixed: Any) -> dict[str, Any]:
        draw = self._random.choice
        keys = draw(((), ("x",), ("x",), ("y",), ("x", "y"))) if self._keyed else ()
        spec = {"kind": draw(self._kinds), "share": draw(self._shares) if self._shares else "", "keys": keys}
        spec["locks"] = draw(SETS) if self._locked else ()
        spec |= {"priority": draw(self._priorities), "most": 3, "pause": 0, "wakes": 0}
        return spec | dict.fromkeys(("queue", "run", "total"), NEVER) | fixed

    def hour(self) -> float:
        """How long it takes; less than the agents' silence may."""
        return self._random.choice((0.001, 1.001, 2.001, 3.001, 6.001))

    def ends(self, held: list[str], queued: list[str]) -> list[tuple[Any, ...]]:
        """What becomes of some tasks that are held, and of one that waits."""
        found = [("end", self._random.choice(self._verbs), task_id) for task_id in held if self._random.random() < 0.6]
        if queued and self._random.random() < 0.25:
            found.append(("end", "cancel", self._random.choice(queued)))
        return found
