"""Prompts: what fits, and that what cannot fit is not encoded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data import prompts
from minigpt.data.prompts import TooLong, chat_ids, prompt_ids
from minigpt.tokenizer.tokenizer import load_tokenizer


class Counting:
    """A tokenizer that counts the characters which it encodes."""

    def __init__(self, tokenizer):
        self._tokenizer, self.encoded = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode(self, text):
        self.encoded += len(text)
        return self._tokenizer.encode(text)


@pytest.fixture
def counting():
    return Counting(load_tokenizer("zh"))


@settings(deadline=None)
@given(st.text("中国的，。 a1\n\u3000🙂\ud800", max_size=60))
def test_a_text_has_at_least_as_many_ids_as_its_length_says(text):
    for name in ("zh", "gpt2"):
        tokenizer = load_tokenizer(name)
        assert tokenizer.fewest(text) <= len(tokenizer.encode(text))


@pytest.mark.parametrize("prompt_format", prompts.FORMATS)
def test_what_cannot_fit_is_refused_before_it_is_encoded(counting, prompt_format):
    with pytest.raises(TooLong, match=r"the prompt has at least \d+ tokens; .* room for 64$"):
        prompt_ids(counting, prompt_format, "很长" * 100_000, 64)
    for truncate in (None, "oldest"):
        with pytest.raises(TooLong, match="at least"):
            turns = [("user", "很长" * 100_000)]
            chat_ids(counting, prompt_format, turns, 64, truncate)
    assert counting.encoded == 0


def test_old_turns_that_are_dropped_are_not_encoded(counting):
    turns = [("user", "很长" * 100_000), ("assistant", "好"), ("user", "黄河？")]
    ids = chat_ids(counting, "chat", turns, 64, "oldest")
    assert "黄河" in counting.decode(ids) and "很长" not in counting.decode(ids)
    assert counting.encoded < 100


TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("甲 乙a", max_size=40)),
    max_size=6,
).map(lambda turns: [*turns, ("user", "问？"), ("assistant", "答")])


@settings(deadline=None)
@given(TURNS, st.integers(1, 120), st.sampled_from([None, "oldest"]))
def test_the_oldest_turns_are_dropped_until_the_others_fit(turns, room, truncate):
    tokenizer, kept = load_tokenizer("zh"), list(turns)
    whole = chat_ids(tokenizer, "chat", kept, 10**9)
    while truncate and len(whole) > room:
        droppable = [i for i, (role, _) in enumerate(kept[:-2]) if role != "system"]
        if not droppable:
            break
        del kept[droppable[0]]
        whole = chat_ids(tokenizer, "chat", kept, 10**9)
    if len(whole) > room:
        with pytest.raises(TooLong):
            chat_ids(tokenizer, "chat", turns, room, truncate)
    else:
        assert chat_ids(tokenizer, "chat", turns, room, truncate) == whole
