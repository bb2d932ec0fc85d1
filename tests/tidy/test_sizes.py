"""Small files, small functions, telling names, and a first line that says what a module is for."""

from __future__ import annotations

import ast

from tests.tidy.sources import ROOT, sources

FILE_LINES = 500
FUNCTION_LINES = 70
# A migration is a list of statements, frozen once released.
MIGRATIONS = "kapell_server.store.migrations.versions"
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def test_no_file_is_two_things() -> None:
    long = [f"{source.name}: {lines} lines" for source in sources() if (lines := source.text.count("\n")) > FILE_LINES]

    assert long == []


def test_no_function_is_two_things() -> None:
    long = [
        f"{source.name}:{function.lineno} {function.name}: {lines} lines"
        for source in sources()
        if not source.is_in(MIGRATIONS)
        for function in source.functions()
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]

    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [source.name for source in sources() if source.text.strip() and not ast.get_docstring(source.tree)]

    assert silent == []


def test_no_name_says_nothing() -> None:
    folders = {path for source in sources() for path in source.path.relative_to(ROOT).parents}
    found = [source.name for source in sources() if source.path.stem in NAMES_THAT_SAY_NOTHING]
    found += [str(folder) for folder in folders if folder.name in NAMES_THAT_SAY_NOTHING]

    assert found == []
