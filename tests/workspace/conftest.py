"""A desk in a repository with one commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workspace.desk import Desk
from tests.workspace.repositories import repository


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    repository(tmp_path / "shop")
    return Desk(tmp_path)
