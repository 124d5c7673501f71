"""Thoughts are separated from the answer, wherever the chunks are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.arena.thoughts import ThoughtSplitter


def split(chunks):
    splitter = ThoughtSplitter()
    pairs = [splitter.push(chunk) for chunk in chunks] + [splitter.push("", final=True)]
    return tuple("".join(parts) for parts in zip(*pairs, strict=True))


@pytest.mark.parametrize(
    "whole, text, thoughts",
    [
        ("北京。", "北京。", ""),
        ("<think>\n让我想想\n</think>\n\n北京。", "北京。", "\n让我想想\n"),
        (" \n<think>想</think>  答", "  答", "想"),
        ("<think>没有结尾", "", "没有结尾"),
        ("<think></think>答<think>后</think>", "答<think>后</think>", ""),
        ("<thin", "<thin", ""),
        ("<thing>", "<thing>", ""),
        ("先 <think>文</think>", "先 <think>文</think>", ""),
        ("  缩进", "  缩进", ""),
        ("", "", ""),
        ("<think>a</thin</think>b", "b", "a</thin"),
    ],
)
def test_thoughts(whole, text, thoughts):
    assert split([whole]) == split(whole) == (text, thoughts)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "\n", " ", "想", "答"])), st.data()
)
def test_the_cuts_do_not_matter(parts, data):
    whole = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *cuts, len(whole)]
    chunks = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert split(chunks) == split([whole])
