"""Stop strings in a text that comes in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.openai.stop_strings import StopStrings

# Two letters and short stops: overlaps, ties and near misses in almost every example.
TEXTS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def shown(pieces, stops):
    """(all that comes out, the stop string that ended it)."""
    finder = StopStrings(stops)
    out = [finder.push(piece) for piece in pieces]
    return "".join(out) + finder.flush(), finder.hit


def reference(text, stops):
    """The same by the definition: the shortest beginning of the text that ends in a stop string."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXTS, STOPS)
def test_a_whole_text_is_cut_as_the_definition_says(text, stops):
    assert shown([text], stops) == reference(text, stops)


@given(st.lists(TEXTS, max_size=8), STOPS)
def test_the_pieces_change_nothing(pieces, stops):
    assert shown(pieces, stops) == reference("".join(pieces), stops)


@given(TEXTS, STOPS)
def test_only_a_possible_beginning_is_held_back(text, stops):
    finder = StopStrings(stops)
    out = ""
    for end in range(1, len(text) + 1):
        out += finder.push(text[end - 1])
        if finder.hit is not None:
            break
        held = text[:end].removeprefix(out)
        assert text[:end] == out + held
        assert held == "" or any(s.startswith(held) and s != held for s in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["。"], ["中国", "的。北京"], ("中国的", "。")),
        (["\n\n", "\n问"], ["答", "\n", "\n"], ("答", "\n\n")),
        (["abc", "b"], ["ab"], ("a", "b")),  # complete first, though it begins later
        (["bc", "abc"], ["xab", "c"], ("x", "abc")),  # complete together: the longest
        (["aab"], ["a", "a", "a", "b"], ("a", "aab")),  # a failed beginning holds another
        (["abc"], ["ab"], ("ab", None)),  # held back, and flushed at the end
        ([], ["ab"], ("ab", None)),
    ],
)
def test_examples(stops, pieces, expected):
    assert shown(pieces, stops) == expected


def test_nothing_comes_after_the_end():
    finder = StopStrings(["x"])
    assert [finder.push("axb"), finder.push("c"), finder.flush()] == ["a", "", ""]
