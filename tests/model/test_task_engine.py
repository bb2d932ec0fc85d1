"""Random lives on each database, against the oracle: a moderate number always, thousands of steps when asked."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.commands import KINDS as KINDS_OF_TASKS
from tests.model.machine import Machine
from tests.support.databases import KINDS, url_of


def machine_on(kind: str, request: pytest.FixtureRequest) -> type[Machine]:
    class OnDatabase(Machine):
        url = url_of(kind, request)

        @staticmethod
        def prepare() -> None:
            url_of(kind, request)

    return OnDatabase


def live(kind: str, request: pytest.FixtureRequest, *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine_on(kind, request),
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
    live(kind, request, examples=40 if kind == "sqlite" else 6, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_oracle_agree_on_thousands_of_steps(kind: str, request: pytest.FixtureRequest) -> None:
    live(kind, request, examples=150 if kind == "sqlite" else 40, steps=60)


def live_busily(kind: str, request: pytest.FixtureRequest, *, seeds: range) -> None:
    """Lives of six busy days each, with a restart in the middle."""
    on_database = machine_on(kind, request)
    for first in seeds[::6]:
        machine, seed = on_database(), first
        try:
            machine.arrive(list(KINDS_OF_TASKS), 2, True)
            machine.arrive(["red"], 1, False)
            for seed in range(first, first + 6):
                if seed == first + 3:
                    machine.restart(orderly=bool(first % 4))
                machine.agents_wait_for_work(seed)
        except AssertionError as error:
            error.add_note(f"in the life that begins with seed {first}, on day {seed}")
            raise
        finally:
            machine.teardown()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_oracle_agree_on_busy_days(kind: str, request: pytest.FixtureRequest) -> None:
    live_busily(kind, request, seeds=range(120 if kind == "sqlite" else 12))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_oracle_agree_on_years_of_busy_days(kind: str, request: pytest.FixtureRequest) -> None:
    live_busily(kind, request, seeds=range(1000, 1900 if kind == "sqlite" else 1150))
