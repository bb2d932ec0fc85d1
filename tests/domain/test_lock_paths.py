"""Paths: one spelling for each thing, and everything else refused with a reason."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell_server.domain.locks.paths import PathError, canonical, covers, touch
from kapell_server.domain.locks.tree import PathTree


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("repo/src/a.py", "repo/src/a.py"),
        ("repo/src/", "repo/src"),
        ("gpu/0", "gpu/0"),
        ("Repo", "Repo"),
        (".github/workflows", ".github/workflows"),
        ("a..b/...", "a..b/..."),
        ("pages/[id].tsx", "pages/[id].tsx"),
        ("with space/in it", "with space/in it"),
        ("cafe\u0301", "caf\u00e9"),
        ("/".join("x" * 32), "/".join("x" * 32)),
        ("é" * 127, "é" * 127),
    ],
)
def test_a_path_has_one_form(written: str, path: str) -> None:
    assert canonical(written) == path


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "an empty segment"),
        ("/", "an empty segment"),
        ("/etc", "an empty segment"),
        ("a//b", "an empty segment"),
        ("a//", "an empty segment"),
        (".", 'the segment "."'),
        ("a/../b", 'the segment ".."'),
        ("a\\b", "a backslash"),
        ("src/*", "a pattern"),
        ("src/?", "a pattern"),
        ("a/ b", "a space"),
        ("a /b", "a space"),
        ("a\nb", "a control character"),
        ("a\x00b", "a control character"),
        ("a\x7fb", "a control character"),
        ("a\u202eb", "an invisible formatting character"),
        ("a\u200bb", "an invisible formatting character"),
        ("\ufeffa", "an invisible formatting character"),
        ("a\u2028b", "a line separator"),
        ("a\ue000b", "a private character"),
        ("a\ud800b", "half a surrogate pair"),
        ("a\U000e0fffb", "a character that Unicode does not know"),
        ("/".join("x" * 33), "33 segments"),
        ("x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("/".join(["x" * 250] * 5), "1254 bytes"),
    ],
)
def test_what_could_be_spelt_otherwise_is_refused(written: str, why: str) -> None:
    with pytest.raises(PathError, match=why):
        canonical(written)


@given(st.text(max_size=40))
def test_the_form_of_a_path_is_its_own_form(text: str) -> None:
    try:
        path = canonical(text)
    except PathError:
        return
    assert canonical(path) == path
    assert path == unicodedata.normalize("NFC", text).removesuffix("/")


def test_a_path_covers_what_is_below_it() -> None:
    assert covers("a", "a")
    assert covers("a", "a/b/c")
    assert not covers("a", "ab")
    assert not covers("a/b", "a")
    assert touch("a/b", "a")
    assert not touch("a/b", "a/c")


_paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@given(st.lists(st.tuples(_paths, st.integers(0, 9)), unique=True, max_size=30), _paths, st.data())
def test_a_tree_finds_what_touches_a_path_and_walks_in_order(
    things: list[tuple[str, int]], path: str, data: st.DataObject
) -> None:
    tree: PathTree[tuple[str, int]] = PathTree()
    for place, key in things:
        tree.add(place, key, (place, key))
    gone = data.draw(st.lists(st.sampled_from(things), unique=True)) if things else []
    for place, key in gone:
        tree.remove(place, key)
    left = [thing for thing in things if thing not in gone]

    found = [thing for entries in tree.touching(path) for _, thing in entries]
    ordered = sorted(left, key=lambda thing: (thing[0].split("/"), thing[1]))
    assert sorted(found) == sorted(thing for thing in left if touch(thing[0], path))
    assert [thing for _, thing in tree.at(path)] == sorted(thing for thing in left if thing[0] == path)
    assert list(tree.walk()) == ordered
    for index, after in enumerate(ordered):
        assert list(tree.walk(after)) == ordered[index + 1 :]
