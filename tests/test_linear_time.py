"""What strangers write takes time that is linear in its length, and no nesting ends the program.

Each function that reads foreign text gets hostile input of two sizes, one twice the other. Only the
ratio of the two times is looked at: about 2 where the time is linear, 4 where it is quadratic.
"""

import contextlib
import gc
import json
import random
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.arena.battles import DisplayText
from minigpt.arena.exports import _fenced
from minigpt.arena.window.labels import label
from minigpt.arena.window.runs import split_samples
from minigpt.common.json_text import MOST_DEPTH, is_deep, parse_json
from minigpt.common.report import markdown_line, one_line
from minigpt.common.urls import api_path, problem_of_url
from minigpt.data import cleaning
from minigpt.data.cleaning import clean, clean_all, clean_light
from minigpt.data.pipeline import read_chunks
from minigpt.data.readers.encodings import Decoding, Undecodable, to_utf8
from minigpt.data.readers.files import SourceFile
from minigpt.data.readers.json_values import json_chunks
from minigpt.data.readers.prose import split_prose
from minigpt.data.readers.records import records_in
from minigpt.data.readers.tables import csv_chunks
from minigpt.data.sentences import Cutter
from minigpt.data.train_bpe import sentences
from minigpt.evaluation.classification import excerpts, find_label
from minigpt.evaluation.examples import first_sentence
from minigpt.evaluation.repetition import measure
from minigpt.evaluation.rouge import words
from minigpt.inference.engine import Token
from minigpt.openai import request_reader
from minigpt.openai.answers import read_part
from minigpt.openai.errors import FIELDS, ApiError, error_text
from minigpt.openai.events import EventReader
from minigpt.openai.ignored_fields import without_ignored
from minigpt.openai.schemas import ChatRequest
from minigpt.openai.stop_strings import StopStrings
from minigpt.rewards import functions, judge
from minigpt.serving.streaming import Choice
from minigpt.synthesis.dedup import comparable
from minigpt.synthesis.filters import Rules, filter_pairs
from minigpt.synthesis.generator import shortened
from minigpt.synthesis.parsing import QA, breaks_off, parse_reply
from minigpt.synthesis.templates import PLACEHOLDER
from minigpt.tokenizer import tokenizer as tokenizer_module
from minigpt.tokenizer.huggingface import _joined
from minigpt.tokenizer.normalization import normalize
from minigpt.tokenizer.tokenizer import PATTERNS, SPECIAL_NAMES, Tokenizer, load_tokenizer


def ignored_fields(body):
    return without_ignored(body, ChatRequest)


LINEAR = 3.2  # the most by which twice the input may take longer
LEAST_SECONDS = 0.004  # a shorter time is within the clock's noise …
MOST_SECONDS = 1.0  # … and an input that takes longer is not made longer


# -- what is timed ---------------------------------------------------------------------------------


def zh():
    return load_tokenizer("zh")


def push_all(sink, pieces):
    for piece in pieces:
        sink.push(piece)


def stream(choice, n):
    for _ in range(n):
        choice.push(Token(104, None, ()))


def file_records(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    for chunk in read_chunks(SourceFile(path)):
        list(records_in(chunk))


def check_answer(answer, text="甲乙丙。"):
    filter_pairs([QA("黄河有多长？", answer)], text, Rules())


MARKS = "\u0301\u0323"  # the second belongs before the first
PARTS = {
    "a run of blanks that is not quite long": " ",
    "line breaks": "\n",
    "ideographic spaces": "\u3000",
    "blanks and line breaks": " \n\t",
    "one letter": "a",
    "two letters": "ab",
    "digits": "1",
    "a mark": "-",
    "Chinese marks": "。！",
    "one Chinese character": "哈",
    "combining marks": MARKS,
    "emoji": "🙂",
}
CLEANED = {
    "brackets": lambda n: "（" * n + "）" * n,
    "brackets of two kinds": lambda n: "（《" * n + "》）" * n,
    "comments": lambda n: "<!-- " * n + "-->" * n,
    "entities": lambda n: "&" + "amp;" * n + "lt;",
    "conversion marks": lambda n: "-{" * n + "甲" + "}-" * n,
    "conversion marks about a long text": lambda n: "-{" * n + "甲" * n + "}-" * n,
    "a form behind blanks": lambda n: "-{;" + " " * n + "甲}-",
    "flags behind blanks": lambda n: "-{" + " " * n + "甲}-",
    "tags": lambda n: "<" * n + "b>" * n,
    "tags in brackets": lambda n: "<（" * n + "）b>" * n,
    "attributes": lambda n: "<b" + " a=x" * n,
    "quotes that hold something": lambda n: "“（，！" * n,
    "brackets that nobody closes": lambda n: "（，" * n,
}
LIGHT = {
    "ampersands": lambda n: "&amp;" * n,
    "code": lambda n: "`" * n + "&lt;",
    "fences": lambda n: "``` " * n,
    "zero-width": lambda n: "\u200d" * n,
}
BYTES = {
    "broken bytes": lambda n: b"\xe5\xa4" * n,
    "broken lines": lambda n: b"\xe5\xa4\xff\n" * n,
    "zeros": lambda n: b"a\0\0" * n,
    "one line of GB18030": lambda n: "甲乙丙丁".encode("gb18030") * n,
}
VALUES = {
    "broken items": lambda n: "[" + '{"a": x, ' * n,
    "objects in objects": lambda n: '{"a":' * n,
    "wrappers": lambda n: '{"data": [' * n,
    "keys": lambda n: '{"a": 1, ' + '"b": [2], ' * n,
    "a string that is not closed": lambda n: '[{"a": "' + '{"a": ' * n,
}


def decoded(data):
    with contextlib.suppress(Undecodable):
        blocks = (data[i : i + 2**16] for i in range(0, len(data), 2**16))
        return list(to_utf8(blocks, Decoding()))


def json_items(text):
    return list(json_chunks("a", iter([text.encode()])))


def csv_rows(text):
    return list(csv_chunks("a", iter([text.encode()]), "csv"))


REPLIES = {
    "blanks behind a value": lambda n: '{"问题": "x"' + " " * n + "z",
    "objects": lambda n: '{"q": ' * n,
    "braces": lambda n: "{" * n,
    "lists": lambda n: '{"q":' + "[" * n,
}
CHECKED = {
    "combining marks": lambda n: MARKS * n,
    "numbers": lambda n: "二十三，" * n,
    "words that point": lambda n: "文中" * n,
    "Latin": lambda n: "ab, " * n,
}
HOSTILE = {
    **{f"encode: {k}": (lambda x: zh().encode(x), lambda n, p=p: p * n) for k, p in PARTS.items()},
    "encode: blanks before a letter": (lambda x: zh().encode(x), lambda n: " " * n + "x"),
    "encode_batch: blanks": (lambda x: zh().encode_batch([x]), lambda n: " " * n + "x"),
    **{f"clean: {kind}": (clean, make) for kind, make in CLEANED.items()},
    "clean_all": (lambda x: clean_all([x], [""]), CLEANED["brackets"]),
    **{f"light: {kind}": (clean_light, make) for kind, make in LIGHT.items()},
    **{f"decode: {kind}": (decoded, make) for kind, make in BYTES.items()},
    **{f"json: {kind}": (json_items, make) for kind, make in VALUES.items()},
    "csv: quotes": (csv_rows, lambda n: '"a\n' * n),
    "csv: a quote that is not closed": (csv_rows, lambda n: 'a,b\n"c' + ",d\n" * n),
    "cut: marks": (lambda x: Cutter(zh(), 64).pieces(x), lambda n: "！" * n, 20_000),
    "cut: marks before a seam": (
        lambda x: Cutter(zh(), 64).pieces(x),
        lambda n: "！" * n + "a。",
        10_000,
    ),
    "cut: letters": (lambda x: Cutter(zh(), 64).pieces(x), lambda n: "中" * n, 20_000),
    "cut: full stops and quotes": (lambda x: Cutter(zh(), 64).pieces(x), lambda n: ".'''" * n),
    "normalize: NFC": (lambda x: normalize("NFC", x), lambda n: MARKS * n),
    "normalize: NFKC": (lambda x: normalize("NFKC", x), lambda n: "a" + "\uff9e\u0301" * n),
    "normalize: a mark of two": (lambda x: normalize("NFC", x), lambda n: "\u0f73" * n),
    "comparable": (comparable, lambda n: MARKS * n),
    **{f"parse_reply: {kind}": (parse_reply, make) for kind, make in REPLIES.items()},
    **{f"breaks_off: {kind}": (breaks_off, make) for kind, make in REPLIES.items()},
    "error: reason": (lambda x: ApiError("", "", 400, x).reason, lambda n: "a-1_" * n),
    "error: meaning": (lambda x: ApiError("", "", 400, x).meaning(FIELDS), lambda n: "max " * n),
    **{f"check: {kind}": (check_answer, make) for kind, make in CHECKED.items()},
    "words": (words, lambda n: "龘" * n, 8_000),
    "number: marks": (lambda x: functions.number("", x, {"answer": "1"}), lambda n: "-1,.1" * n),
    "number: digits": (lambda x: functions.number("", x, {"answer": "1"}), lambda n: "1" * n),
    "mark_in": (judge.mark_in, lambda n: "评分：" * n),
    "measure": (measure, lambda n: [1, 2] * n),
    "sentences": (sentences, lambda n: "。a" * n + "b" * n),
    "first_sentence": (first_sentence, lambda n: ".'" * n),
    "split_prose": (split_prose, lambda n: "。" + " \n" * n),
    "shortened": (lambda x: shortened(x, len(x) - 1), lambda n: "." + "'" * n),
    "excerpts": (lambda x: excerpts(x, 20), lambda n: "a " * n),
    "find_label": (lambda x: find_label(x, ["ab", "体育"]), lambda n: "a" * n),
    "api_path": (api_path, lambda n: "http://x/v" + "1" * n + "-"),
    "problem_of_url": (problem_of_url, lambda n: "http://x" + "/a." * n + "?"),
    "placeholders": (PLACEHOLDER.findall, lambda n: "{a" * n),
    "one_line": (one_line, lambda n: "\n " * n),
    "label": (label, lambda n: b"\xe4\x00" * n),
    "split_samples": (split_samples, lambda n: "step 1: \nstep " * n),
    "read_json": (lambda x: request_reader.read_json(x), lambda n: b'{"a": "' + b'\\"' * n + b'"}'),
    "read_form": (request_reader.read_form, lambda n: b"&".join(b"a%d=%%20" % i for i in range(n))),
    "ignored fields": (ignored_fields, lambda n: {"a": [{"Aa": 0, "off": [0] * 5}] * n}),
    "ignored fields of messages": (
        ignored_fields,
        lambda n: {"messages": [{"role": "user", "content": ["a", {"aA" * 50: 1}]}] * n},
    ),
    "a field's name": (
        lambda x: request_reader.similar_field(x, ["temperature"]),
        lambda n: "eE" * n,
    ),
    "events": (lambda x: list(EventReader().push(x)), lambda n: b"data: a\n" * n),
    "complaint": (error_text, lambda n: b"<" * n),
    "markdown: escaped": (markdown_line, lambda n: "*`" * n),
    "markdown: fenced": (_fenced, lambda n: "` " * n),
    "parse_json": (parse_json, lambda n: "[" + "[]," * n + "1]"),
    "stop strings": (
        lambda n: push_all(StopStrings(["b" + "a" * n]), ["a"] * n),
        lambda n: n,
        4_000,
    ),
    "shown": (lambda n: push_all(DisplayText(10**9), ["中"] * n), lambda n: n, 100_000),
    "a choice": (lambda n: stream(Choice(0, zh(), ["a" * 100]), n), lambda n: n),
    "a token of a foreign vocabulary": (
        lambda x: _joined(x, {(b"a", b"a"): 0, (b"aa", b"aa"): 1}),
        lambda n: b"a" * n,
    ),
}


def seconds(call, given):
    gc.disable()  # or the collector, which looks through all modules, is what is timed
    try:
        began = time.process_time()
        call(given)
        return time.process_time() - began
    finally:
        gc.enable()


def ratio_of_doubling(call, make, n=500):
    """How many times as long twice the input takes. n: a size at which it would show, where that
    is not so as soon as the time can be measured."""
    call(make(n))  # what is loaded once is loaded now
    while n < 2**18 and (once := seconds(call, make(n))) < LEAST_SECONDS:
        n *= 2
        assert once < MOST_SECONDS
    # A jump at one size (a full cache, mapped memory) is not a square, which shows at every size.
    for size in (n, 2 * n, 4 * n):
        ratio = _ratio(call, make(size), make(2 * size))
        if ratio < LINEAR:
            break
    return ratio


def _ratio(call, small, large):
    """How many times as long as `small` the input `large` takes, at best."""
    times = []
    for _ in range(4):  # another program may have slowed down all of a round's
        times += [(seconds(call, small), seconds(call, large)) for _ in range(3)]
        once, twice = map(min, zip(*times, strict=True))
        if twice < LINEAR * once:
            break
    return twice / max(once, 1e-4)


@pytest.mark.parametrize("name", HOSTILE)
def test_twice_the_text_takes_twice_the_time(name):
    assert ratio_of_doubling(*HOSTILE[name]) < LINEAR


def test_the_measure_knows_what_is_quadratic():
    assert ratio_of_doubling(lambda n: [None for _ in range(n * n // 64)], lambda n: n) > LINEAR


def test_a_long_item_of_a_list_is_not_read_again_for_each_block(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt.data.readers.containers.READ_SIZE", 2**12)

    def read(n):
        file_records(tmp_path, "a.json", b'[{"text": "' + b"a" * n + b'"}]')

    assert ratio_of_doubling(lambda n: read(n * 2**9), lambda n: n) < LINEAR


def test_a_run_that_the_search_would_try_from_each_of_its_blanks():
    # One short of the length that counts as long, as it was measured: 28 s for 300 kB.
    run = " " * (tokenizer_module._LONGEST_BLANK - 1) + "x"
    short = seconds(zh().encode, "x " * len(run))
    assert seconds(zh().encode, run * 3) < 10 * short + 0.1


# -- and is read as before -------------------------------------------------------------------------

BLANKS = st.lists(
    st.tuples(st.sampled_from([" ", "\n", "\t", "\u3000", "\r\n", " \n", "\u2003", "\x1c", "\x85"]),
              st.integers(1, 40)).map(lambda run: run[0] * run[1]),
    max_size=4,
).map("".join)  # fmt: skip
SOLID = st.text("ab中1٣.!'s！\u0301-", max_size=4)
RUNS = st.lists(BLANKS | SOLID, max_size=8).map("".join)


def patterned(pattern):
    ranks, special = zh()._ranks, zh().special
    assert set(special) == set(SPECIAL_NAMES)
    return Tokenizer(pattern, ranks, PATTERNS[pattern], special)


@pytest.mark.parametrize("tokenizer", [zh(), load_tokenizer("gpt2"), *map(patterned, PATTERNS)],
                         ids=lambda tokenizer: tokenizer.name)  # fmt: skip
def test_ids_are_those_of_tiktoken_whatever_counts_as_a_long_run(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_LONGEST_BLANK", 5)
    for name, blank in (("_LONG_BLANK", "\\r\\n"), ("_LONG_BLANK_IN_LINE", "")):
        pattern = tokenizer_module._long_run(blank + tokenizer_module._BLANK)
        monkeypatch.setattr(tokenizer_module, name, pattern)

    @settings(deadline=None)
    @given(RUNS)
    def same(text):
        assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)

    same()


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalization_is_that_of_unicodedata(form):
    marks = st.text("\u0301\u0323\u0344\u0f73\u0f71\u0f81\u3099\uff9e\u0345\u05b0", max_size=90)

    @settings(deadline=None)
    @given(st.lists(marks | st.text(max_size=3), max_size=4).map("".join))
    def same(text):
        assert normalize(form, text) == unicodedata.normalize(form, text)

    same()
    rng = random.Random(1)
    every = [c for c in map(chr, range(0x110000)) if unicodedata.combining(c)]
    for _ in range(10):  # every mark that there is, in runs
        rng.shuffle(every)
        text = "a" + "".join(every)
        assert normalize(form, text) == unicodedata.normalize(form, text)


BRACKETS = st.text("（）()《》“”「」[]{}，！ 甲", max_size=30)


@settings(deadline=None)
@given(BRACKETS)
def test_brackets_at_any_depth_are_those_that_the_rules_remove_one_by_one(text):
    before, expected = None, text
    steps = [
        (pattern.sub, replacement)
        for (_, pattern, replacement, _), rule in zip(cleaning._STEPS, cleaning.RULES, strict=True)
        if rule.pattern.endswith((f"{cleaning.P}]*[）)]", *(f"]*{c}" for c in "》〉】〔］”’」』")))
        or rule.pattern.endswith((r"]*\]", r"]*\}"))
    ]
    while before != expected:
        before = expected
        for substitute, replacement in steps:
            expected = substitute(replacement, expected)
    assert cleaning._without_empty_brackets(text) == expected


@pytest.mark.parametrize("kind", CLEANED)
@pytest.mark.parametrize("n", [3, cleaning.PASSES + 5, 200])
def test_what_is_nested_deeply_is_clean_at_once(kind, n):
    once = clean(f"甲{CLEANED[kind](n)}乙")
    assert clean(once) == once
    if kind in ("brackets", "brackets of two kinds", "comments", "tags in brackets") and n == 3:
        assert once == "甲乙"
    if kind in ("brackets", "brackets of two kinds", "comments"):
        assert once == "甲乙"
    if kind == "entities":
        assert once == "甲<乙"


# -- depth -----------------------------------------------------------------------------------------

DEEP = 100_000


def nested(depth):
    return b'{"text": "a", "more": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 500, 900, 980, DEEP])
def test_a_nested_line_is_refused_and_costs_no_other(tmp_path, depth):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + nested(depth) + b'\n{"text": "\\u00e9"}\n')
    found = [record for chunk in read_chunks(SourceFile(path)) for _, record in records_in(chunk)]
    assert [type(record).__name__ for record in found] == ["dict", "Reject", "dict"]
    assert "nested" in found[1].reason


@pytest.mark.parametrize("depth", [300, 900, DEEP])
def test_a_nested_answer_of_a_server_is_garbage(depth):
    data = b'{"error": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
    assert "[[[" in error_text(data)
    with pytest.raises(ApiError, match="it sent no JSON"):
        read_part(data.decode(), "message")


def test_what_can_be_read_can_be_written():
    value = parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    assert json.loads(json.dumps(value)) == value and len(str(value)) == 2 * MOST_DEPTH
    assert not is_deep(value) and is_deep([value])
    with pytest.raises(ValueError, match="nested"):
        parse_json(json.dumps([value]))


@pytest.mark.parametrize(
    "call",
    [
        clean,
        lambda text: zh().encode(text),
        lambda text: parse_reply(text),
        lambda text: first_sentence(text),
        lambda text: check_answer(text),
        lambda text: split_prose(text),
    ],
)
@pytest.mark.parametrize("bracket", ["（", "[", "{", "-{", '{"q":', "<!--"])
def test_brackets_by_the_hundred_thousand_end_nothing(call, bracket):
    before = sys.getrecursionlimit()
    call(bracket * (DEEP // len(bracket)))
    assert sys.getrecursionlimit() == before


def test_prose_of_bytes_that_begin_no_character(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\x80" * 300_000)
    found = [record for chunk in read_chunks(SourceFile(path)) for _, record in records_in(chunk)]
    assert found
