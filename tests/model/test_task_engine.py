"""Random lives on each database, against the oracle: a moderate number always, thousands of steps when asked."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Machine
from tests.support.databases import KINDS, url_of


def live(kind: str, request: pytest.FixtureRequest, *, examples: int, steps: int) -> None:
    class OnDatabase(Machine):
        url = url_of(kind, request)

        @staticmethod
        def prepare() -> None:
            url_of(kind, request)

    run_state_machine_as_test(
        OnDatabase,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_oracle_agree_on_every_step(kind: str, request: pytest.FixtureRequest) -> None:
    live(kind, request, examples=60 if kind == "sqlite" else 8, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_oracle_agree_on_thousands_of_steps(kind: str, request: pytest.FixtureRequest) -> None:
    live(kind, request, examples=150 if kind == "sqlite" else 40, steps=60)
