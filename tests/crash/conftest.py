"""Crash tests begin with an empty log: revision 1 is the first that they cause themselves."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_shipped_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAPELL_NO_TEMPLATES", "true")
