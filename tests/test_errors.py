"""Text helpers of error messages."""

import pytest

from uvos_jax.errors import nearest_hint


@pytest.mark.parametrize(("wrong", "known", "hint"), [
    ("adnett", ("cfbi", "adnet"), "adnet"),
    ("widht", ("depths", "width"), "width"),
    ("dsi", ("dis", "raft"), "dis"),
    ("bacbkone", ("head", "backbone"), "backbone"),
    ("moment", ("momentum",), "momentum"),
    ("goldfsh.mp4", ("goldfish.mp4", "goldfinch.mp4"), "goldfish.mp4"),
    ("unsup", ("semi", "unsupervised"), "unsupervised"),
    ("valid", ("train", "val"), "val"),
])
def test_nearest_hint_finds_typos_and_abbreviations(wrong, known, hint):
    assert nearest_hint(wrong, known) == f" Did you mean '{hint}'?"


@pytest.mark.parametrize(("wrong", "known"), [
    ("nothere.mp4", ("term", "there", "mp4")),
    ("nothere.png", ("three", "three.jpg")),
    ("nothere", ("synthetic", "default")),
    ("float64", ("bfloat16",)),
    ("a", ("b", "c")),
    ("", ("x", "abc")),
    ("x", ()),
])
def test_nearest_hint_ignores_other_names(wrong, known):
    assert nearest_hint(wrong, known) == ""
