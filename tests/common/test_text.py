"""Half surrogate pairs, in a text and in its chunks."""

import pytest

from minigpt.common.text import SurrogateJoiner, replace_lone_surrogates

TEXTS = [
    ("天下 a\n", "天下 a\n"),
    ("\ud83d\ude00", "😀"),
    ("😀\ud83d", "😀\ufffd"),
    ("a\ude00b", "a\ufffdb"),
    ("\ude00\ud83d", "\ufffd\ufffd"),
    ("\ud83d\ud83d\ude00", "\ufffd😀"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=ascii)
def test_halves_are_joined_or_replaced(text, expected):
    assert replace_lone_surrogates(text) == expected
    for cut in range(len(text) + 1):
        joiner = SurrogateJoiner()
        shown = [joiner.push(text[:cut]), joiner.push(text[cut:]), joiner.push("", final=True)]
        assert "".join(shown) == expected
