"""Cutting: by hand on tokens of one byte, and against plain encoding and trying on real ones."""

import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.pipeline import read_entries
from minigpt.data.sentences import ENDS, SMALLEST_BLOCK, Cutter
from minigpt.data.train_bpe import token_ranks, train_bpe
from minigpt.tokenizer.tokenizer import PATTERNS, Tokenizer, load_tokenizer

PROSE = (
    "后来他走了。后来，他又来了！“好的。”后来她说：“不好……”然后（注：见后）。第3.5章，later she "
    'said: no. And he said "yes." Then 后来。后来；后来：后来、后来……后来？！」后来』后来．后来。”'
)


@pytest.fixture
def by_bytes(byte_tokenizer):
    """(text, block_size) → the pieces' texts, for a tokenizer whose tokens are single bytes."""

    def cut(text, block_size=SMALLEST_BLOCK):
        *others, last = Cutter(byte_tokenizer, block_size).pieces(text)
        assert last.pop() == byte_tokenizer.eot
        return [bytes(list(ids)).decode() for ids in [*others, last]]

    return cut


def test_sentences_as_many_as_fit(by_bytes):
    # 16 tokens: a piece in the middle may take all, the last one needs one for EOT.
    assert by_bytes("Aaaaa. Bbbbb. C.") == ["Aaaaa. Bbbbb.", " C."]
    assert by_bytes("Aaaaa. Bbbb. C.") == ["Aaaaa. Bbbb. C."]
    assert by_bytes("Aaaaa. Bbbbbbb. Ccccccccccc. D.") == [
        "Aaaaa. Bbbbbbb.",
        " Ccccccccccc.",
        " D.",
    ]
    assert by_bytes("甲乙。丙。丁") == ["甲乙。丙。", "丁"]  # 15 bytes, then 3
    assert by_bytes("甲。乙。丙") == ["甲。乙。丙"]  # 15 and EOT


def test_what_ends_a_sentence(by_bytes):
    for end in [
        "。",
        "！",
        "？",
        "．",
        "…",
        "！？",
        "……",
        "!",
        "?",
        "。”",
        "。」",
        "！』",
        "。）",
        "…’",
    ]:
        first = f"ab{end}"
        assert by_bytes(first + "c" * 15) == [first, "c" * 15], end
    for end in [". ", '." ', ".) ", ".\n"]:
        assert by_bytes(f"ab{end}" + "c" * 13)[0] == "ab" + end.rstrip(" "), end
    for no_end in ["3.14", "a.b", "v1.0"]:
        assert by_bytes(no_end + "c" * 15)[0] == no_end + "c" * (16 - len(no_end))


def test_a_sentence_longer_than_a_block(by_bytes):
    assert by_bytes("aaaaa，bbb，ccccc") == ["aaaaa，bbb，", "ccccc"]  # at a clause
    assert by_bytes("one two three four") == ["one two three ", "four"]  # at a blank
    assert by_bytes("1,000,000,000,000,000") == ["1,000,000,000,00", "0,000"]  # no clauses
    assert by_bytes("甲乙丙丁戊己") == ["甲乙丙丁戊", "己"]  # between characters, not bytes
    assert by_bytes("🙂" * 5) == ["🙂" * 4, "🙂"]
    assert by_bytes("a" * 16) == ["a" * 15, "a"]  # fits, but not with EOT


def test_the_classic_cut(byte_tokenizer):
    cutter = Cutter(byte_tokenizer, 16)
    ids, characters = cutter.first_sentences("Aa. Bb. Cc. Ddddd")
    assert (
        bytes(list(ids[:-1])) == b"Aa. Bb. Cc."
        and ids[-1] == byte_tokenizer.eot
        and characters == 11
    )
    assert cutter.first_sentences("Aaaaaa. Bbbbbb. C.")[1] == 15
    assert cutter.first_sentences("Aaaaaa. Bbbbbbb. C.")[1] == 7  # EOT needs one
    assert cutter.first_sentences("甲。乙")[1] == 2  # also where all would fit
    assert cutter.first_sentences("Aaaaaaaaaaaaaaaa. B.") is None
    assert cutter.first_sentences("no sentence") is None
    assert cutter.first_sentences("no sentence\nno line")[1] == 12
    assert cutter.pieces("a\nif x != y:\n    z")[0][:-1] == cutter.encode("a\nif x != y:")


@functools.cache
def learned(pattern):
    """A vocabulary of 500 tokens whose merges reach as far as the pattern allows."""
    ranks = token_ranks(train_bpe([PROSE * 9, PROSE[7:] * 9], 500, pattern))
    names = ("EOT", "PAD", "A", "IM_START", "IM_END")
    return Tokenizer(
        pattern, ranks, PATTERNS[pattern], {n: len(ranks) + i for i, n in enumerate(names)}
    )


@functools.cache
def tokenizer_of(name):
    return learned(name) if name in PATTERNS else load_tokenizer(name)


@functools.cache
def cutter_of(tokenizer, block_size):
    return Cutter(tokenizer, block_size)


def check_pieces(tokenizer, text, block_size):
    """Nothing is lost, everything fits, ids are those of the text, and no sentence more fits."""
    *others, last = cutter_of(tokenizer, block_size).pieces(text)
    assert last.pop() == tokenizer.eot and len(last) < block_size
    parts = [tokenizer.decode_bytes(ids).decode() for ids in [*others, last]]
    assert "".join(parts) == text
    start = 0
    for part, ids in zip(parts, [*others, last], strict=True):
        assert list(ids) == tokenizer.encode(part) and len(ids) <= block_size
        start += len(part)
    start = 0
    for part in parts[:-1]:
        assert len(tokenizer.encode(text[start:])) >= block_size  # it did not fit with EOT
        ends = [m.end() for m in ENDS[0].finditer(text, start) if start < m.end() < len(text)]
        near = [end for end in ends if end - start <= len(part) + 30]
        fitting = [e for e in near if len(tokenizer.encode(text[start:e])) <= block_size]
        if fitting:
            assert start + len(part) == fitting[-1]
        start += len(part)
    return parts


prose = st.lists(
    st.sampled_from(
        [*re.findall(r"..?", PROSE), "。", "，", "后来", "。后来", " ", "\n", "🙂", "é"]
    ),
    max_size=60,
).map("".join)


@settings(deadline=None)
@given(prose, st.sampled_from(["zh", "gpt2", *PATTERNS]), st.sampled_from([16, 23, 40]))
def test_pieces_are_what_the_tokenizer_gives_for_them(text, name, block_size):
    check_pieces(tokenizer_of(name), text, block_size)


@settings(deadline=None)
@given(prose, st.sampled_from(["zh", "gpt2", *PATTERNS]), st.sampled_from([16, 23, 40]))
def test_the_classic_cut_takes_the_last_sentence_that_fits(text, name, block_size):
    tokenizer = tokenizer_of(name)
    found = cutter_of(tokenizer, block_size).first_sentences(text)
    for pattern in ENDS[:2]:  # sentences; where none fits, lines
        ends = [match.end() for match in pattern.finditer(text)]
        fitting = [end for end in ends if len(tokenizer.encode(text[:end])) < block_size]
        if fitting:
            break
    if not fitting:
        assert found is None
    else:
        assert found[1] == fitting[-1]
        assert list(found[0]) == [*tokenizer.encode(text[: fitting[-1]]), tokenizer.eot]


def test_a_token_that_reaches_over_a_sentence_end_is_not_torn():
    # In this pattern a mark goes with the letters behind it: 。后来 is one token.
    tokenizer = learned("qwen2")
    assert len(tokenizer.encode("。后来")) == 1
    parts = check_pieces(tokenizer, "他走了。后来" * 30, 16)
    assert len(parts) > 3 and all(part.endswith("。") for part in parts[:-1])


@pytest.mark.parametrize(("name", "block_size"), [("zh", 256), ("gpt2", 512)])
@pytest.mark.parametrize("folder", ["wiki", "handbook", "novels", "wiki_traditional"])
def test_real_text(shared_data, name, block_size, folder):
    for clean in ("auto", "none"):
        entries = read_entries(shared_data / folder, clean=clean)
        for _, entry in zip(range(12), entries, strict=False):
            check_pieces(load_tokenizer(name), entry.text[:6000], block_size)
