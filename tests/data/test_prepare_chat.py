"""Instructions and conversations: from files to blocks, to a run that is trained on them, and to
what it answers."""

import importlib
import json
import re
import signal
import sys
import threading
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import pack, run_here, write_jsonl

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.data.encoders import DialogueEncoder
from minigpt.data.formats import FORMATS, Conversation, parse_chat
from minigpt.data.hashing import is_val
from minigpt.data.pipeline import PrepareOptions, prepare, table
from minigpt.data.prompts import chat_ids, prompt_ids
from minigpt.evaluation.examples import (
    HELD_OUT,
    OTHER,
    SEEN,
    first_held_out,
    membership,
    read_examples,
)
from minigpt.evaluation.perplexity import block_perplexity, reply_passages
from minigpt.evaluation.quantization_cost import held_out_passages
from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import QueueLimits, RequestScheduler
from minigpt.models import checkpoint
from minigpt.serving.app import make_app
from minigpt.serving.service import Options, Served, Service
from minigpt.serving.wsgi import flush, listen
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training import summary

CHAT, ALPACA = FORMATS["chat"], FORMATS["alpaca"]
ENCODER = DialogueEncoder("chat")
LAYOUTS = ["pad", "split", "concat", "packed"]


def message(role, content):
    return {"role": role, "content": content}


def said(*turns):
    """A record of messages: said("user", "谁？", "assistant", "我。")."""
    return {"messages": [message(*turn) for turn in zip(turns[::2], turns[1::2], strict=True)]}


def encoded(tokenizer, conversation, block_size=512, encoder=ENCODER):
    """(ids, bounds, characters, characters left out), or the reason why it is dropped."""
    sample = encoder.fit(conversation)
    rows = [array("I", tokenizer.encode(text)) for text in encoder.texts(sample)]
    cutter = SimpleNamespace(tokenizer=tokenizer, block_size=block_size)
    found = encoder.encode(sample, rows, cutter, "pad")
    if isinstance(found, str):
        return found
    ((ids, *bounds),), characters, left_out = found
    return list(ids), bounds, characters, left_out


# -- ids and masks ---------------------------------------------------------------------------------

# By hand: the tokens of a conversation of two turns and a system text, | between them; S and E
# are the marks, N is a line break, and the targets are in [ ].
ENGLISH = (
    "S|system|N|Be| brief|.|E|N|S|user|N|Who| is| it|?|E|N|S|ass|istant|N|[It| is| me|.|E]|N|"
    "S|user|N|No|!|E|N|S|ass|istant|N|[Yes|,| me|.|E]"
)
CHINESE = (
    "S|s|y|st|e|m|N|答案|要|短|。|E|N|S|us|er|N|中国|的首|都是|哪里|？|E|N|S|as|s|ist|an|t|N|"
    "[北京|。|E]|N|S|us|er|N|真|的|吗|？|E|N|S|as|s|ist|an|t|N|[是|的|。|E]"
)


@pytest.mark.parametrize(
    ("name", "tokens", "turns"),
    [
        ("gpt2", ENGLISH, ("Be brief.", "Who is it?", "It is me.", "No!", "Yes, me.")),
        ("zh", CHINESE, ("答案要短。", "中国的首都是哪里？", "北京。", "真的吗？", "是的。")),
    ],
)
def test_two_turns_by_hand(name, tokens, turns):
    tokenizer = load_tokenizer(name)
    numbers = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.n_vocab)}
    numbers |= {b"S": tokenizer.special["IM_START"], b"E": tokenizer.special["IM_END"]}
    numbers[b"N"] = numbers[b"\n"]
    parts = tokens.split("|")
    ids = [numbers[part.strip("[]").encode()] for part in parts]
    first = [i for i, part in enumerate(parts) if part.startswith("[")]
    last = [i + 1 for i, part in enumerate(parts) if part.endswith("]")]
    roles = ("system", "user", "assistant", "user", "assistant")
    conversation = Conversation(None, tuple(zip(roles, turns, strict=True)))
    found = encoded(tokenizer, conversation)
    assert found[:2] == (ids, [first[0], last[0], first[1], last[1]])
    assert found[2:] == (sum(map(len, turns)), 0)


MARKS = ["<|im_end|>", "<|im_start|>", "assistant\n"]  # as texts may spell them
CONTENTS = st.one_of(
    st.lists(st.sampled_from([*"ab \n\t\u3000。天0.", *MARKS]), min_size=1).map("".join),
    st.text(min_size=1).map(lambda text: text.encode("utf-8", "replace").decode()),
).filter(str.strip)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENTS), max_size=5)
NAMES = ("zh", "gpt2", "bytes")


@pytest.fixture(scope="module")
def tokenizers(byte_tokenizer):
    return {name: load_tokenizer(name) for name in NAMES[:2]} | {"bytes": byte_tokenizer}


@given(TURNS, CONTENTS, st.lists(CONTENTS, min_size=1, max_size=2), st.sampled_from(NAMES))
def test_learned_is_what_the_assistant_says_and_its_end(tokenizers, before, asked, answers, name):
    tokenizer = tokenizers[name]
    turns = [*before, ("user", asked), *(("assistant", answer) for answer in answers)]
    made = parse_chat(said(*(part for turn in turns for part in turn)))
    turns = tuple((role, content.strip()) for role, content in turns)
    assert made == (None, turns)
    ids, bounds, characters, left_out = encoded(tokenizer, made, 10**9)
    assert (characters, left_out) == (sum(len(content) for _, content in turns), 0)
    learned, expected = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    for first, last in zip(bounds[::2], bounds[1::2], strict=True):
        learned[first:last] = True
    # Only the marks delimit turns, whatever text the contents have.
    begins = [i for i, token in enumerate(ids) if token == tokenizer.special["IM_START"]]
    ends = [i for i, token in enumerate(ids) if token == tokenizer.special["IM_END"]]
    assert ends[-1] == len(ids) - 1
    for (role, content), begin, end in zip(turns, begins, ends, strict=True):
        assert tokenizer.decode(ids[begin + 1 : end]) == f"{role}\n{content}"
        if role == "assistant":
            expected[end - len(tokenizer.encode(content)) : end + 1] = True
    assert (learned == expected).all()


@given(TURNS, CONTENTS, CONTENTS, st.sampled_from(NAMES))
def test_a_run_is_given_what_it_learned_to_continue(tokenizers, before, asked, answer, name):
    tokenizer = tokenizers[name]
    turns = [(role, content.strip()) for role, content in [*before, ("user", asked)]]
    reply = tokenizer.encode(answer.strip())
    row, bounds, _, _ = encoded(
        tokenizer, Conversation(None, (*turns, ("assistant", answer.strip()))), 10**9
    )
    prompt = chat_ids(tokenizer, "chat", turns, 10**9)
    assert row == [*prompt, *reply, tokenizer.special["IM_END"]]
    assert bounds[-2:] == [len(prompt), len(row)]
    assert prompt_ids(tokenizer, "chat", turns[-1][1]) == chat_ids(
        tokenizer, "chat", turns[-1:], 10**9
    )


# -- too long --------------------------------------------------------------------------------------


def test_last_turns_are_left_out_each_whole(byte_tokenizer):
    # In bytes a turn takes its role, its content and 3 more; a line break separates turns.
    system, user = len("system") + 5 + 3, len("user") + 5 + 3
    reply = len("assistant") + 5 + 3
    turns = [("system", "s" * 5)]
    for letter in "abc":
        turns += [("user", letter * 5), ("assistant", letter.upper() * 5)]
    conversation = Conversation(None, (*turns, ("user", "never answered")))
    one = system + 1 + user + 1 + reply
    two = one + 1 + user + 1 + reply
    for block_size, length, kept in [
        (two + 1 + user + 1 + reply, two + 1 + user + 1 + reply, 7),
        (two + 1 + user + reply, two, 5),
        (two, two, 5),
        (two - 1, one, 3),
        (one, one, 3),
    ]:
        ids, bounds, characters, left_out = encoded(byte_tokenizer, conversation, block_size)
        assert (len(ids), characters) == (length, 5 * kept)
        assert left_out == 5 * (7 - kept) + len("never answered")
        assert len(bounds) == 2 * (kept // 2) and bounds[-1] == length
        assert ids == encoded(byte_tokenizer, Conversation(None, tuple(turns)))[0][:length]
    assert encoded(byte_tokenizer, conversation, one - 1) == "too long"


# -- learned and cut -------------------------------------------------------------------------------


def learned_of(record, block_size, **knobs):
    """(texts of the tokens up to the last target, what of it is learned), in bytes; or a reason."""
    encoder = DialogueEncoder(**({"prompt_format": "qa"} | knobs))
    tokenizer = load_tokenizer("zh")
    found = encoded(tokenizer, record, block_size, encoder)
    if isinstance(found, str):
        return found
    ids, bounds, characters, left_out = found
    names = {i: name for name, i in tokenizer.special.items()}
    shown = [names.get(i) or tokenizer.decode([i]) for i in ids]
    spans = [shown[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
    return "|".join(shown), ["|".join(span) for span in spans], characters, left_out


QUESTION = Conversation(None, (("user", "中国的首都是哪里？"), ("assistant", "北京是首都。")))


def test_the_prompt_is_learned_but_its_first_token():
    whole = "中国|的首|都是|哪里|？|A|北京|是|首|都|。|EOT"
    assert learned_of(QUESTION, 16) == (whole, ["北京|是|首|都|。|EOT"], 15, 0)
    assert learned_of(QUESTION, 16, learn_prompt=True)[1] == [whole.removeprefix("中国|")]
    chat = learned_of(QUESTION, 64, prompt_format="chat", learn_prompt=True)
    assert chat[1] == [chat[0].removeprefix("IM_START|")] and chat[0].endswith("。|IM_END")


def test_what_is_too_long_is_dropped_or_cut():
    assert learned_of(QUESTION, 12)[2:] == (15, 0)  # fits
    assert learned_of(QUESTION, 11) == "too long"
    cut = learned_of(QUESTION, 8, too_long="truncate")
    assert cut == ("中国|的首|都是|哪里|？|A|北京|是", ["北京|是"], 12, 3)
    cut = learned_of(QUESTION, 8, too_long="truncate", learn_prompt=True)
    assert cut[1] == ["的首|都是|哪里|？|A|北京|是"]
    # Not one token of the answer fits.
    assert learned_of(QUESTION, 6, too_long="truncate") == "too long"
    assert learned_of(QUESTION, 6, too_long="truncate", learn_prompt=True) == "too long"


def test_a_conversation_is_cut_within_a_turn():
    two = Conversation(None, QUESTION.turns * 2)
    whole, spans, _, _ = learned_of(two, 99, prompt_format="chat")
    n_first = len(learned_of(QUESTION, 99, prompt_format="chat")[0].split("|"))
    n = len(whole.split("|"))
    kept = learned_of(two, n - 2, prompt_format="chat")
    assert kept[1] == spans[:1] and len(kept[0].split("|")) == n_first and kept[2:] == (15, 15)
    cut = learned_of(two, n - 2, prompt_format="chat", too_long="truncate")
    assert cut[0] == "|".join(whole.split("|")[:-2]) and cut[1] == [
        "北京|是|首|都|。|IM_END",
        "北京|是|首|都",
    ]
    assert cut[2:] == (29, 1)


def test_the_scripts_knobs_reach_the_masks(tmp_path, byte_tokenizer):
    pairs = [{"question": f"{i}?", "answer": "y" * (5 if i % 2 else 30)} for i in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", pairs)
    found = {}
    for knob in ("--too_long=drop", "--too_long=truncate", "--learn_prompt=true"):
        words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", knob, "--layout=pad"]
        words += ["--block_size=16", f"--tokenizer={byte_tokenizer.name}", "--workers=1"]
        code, _, errors = run_here("data/prepare_sft.py", *words)
        assert code == 0, errors
        blocks = Blocks(tmp_path / "made", "train", byte_tokenizer)
        found[knob] = blocks.meta["counts"], blocks.mask & 1
    (drop, masks), (cut, cut_masks), (_, all_masks) = found.values()
    assert drop["dropped"] == {"too long": 30} and cut["dropped"] == {} and cut["cut"] == 30
    assert set(masks.sum(axis=1)) == {6} and {13, 12} >= set(cut_masks.sum(axis=1)) - {6} != set()
    assert set(all_masks.sum(axis=1) - masks.sum(axis=1)) == {2, 3}  # "i?" and the answer mark


# -- conversations as texts to pretrain on ---------------------------------------------------------


def prepared_texts(tmp_path, byte_tokenizer, *words, block_size=96):
    """(the printed table, rows of the train split as texts) of texts and conversations."""
    talks = [
        {"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": f"{i}!"}]}
        for i in range(100)
    ]
    texts = [{"text": f"A text, the {i}th."} for i in range(50)]
    path = write_jsonl(tmp_path / "mixed.jsonl", [*talks, *texts])
    words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", *words, "--workers=1"]
    words += [f"--tokenizer={byte_tokenizer.name}", f"--block_size={block_size}", "--layout=split"]
    code, printed, errors = run_here("data/prepare.py", *words)
    if code:
        return errors, []
    blocks = Blocks(tmp_path / "made", "train", byte_tokenizer)
    assert blocks.meta["prompt_format"] == "plain"
    names = {i: f"<{name}>" for name, i in byte_tokenizer.special.items()}
    rows = ["".join(names.get(i) or chr(i) for i in row) for row in blocks.tokens.tolist()]
    masks = (blocks.mask & 1).sum(axis=1).tolist()
    rows = [row.replace("<PAD>", "") for row in rows]
    assert masks == [len(re.sub("<[A-Z_]+>", "-", row)) - 1 for row in rows]  # all but the first
    return printed, rows


def test_conversations_are_text_only_where_asked(tmp_path, byte_tokenizer):
    error, _ = prepared_texts(tmp_path, byte_tokenizer)
    assert "it looks like --format=chat of data/prepare_sft.py" in error


def test_conversations_as_plain_text(tmp_path, byte_tokenizer):
    printed, rows = prepared_texts(tmp_path, byte_tokenizer, "--conversations=plain")
    assert "read 150 = kept 150 + dropped 0" in printed
    talks = {row for row in rows if "?" in row}
    assert talks <= {f"{i}?\n\n{i}!<EOT>" for i in range(100)} and len(talks) > 60


def test_a_share_of_them_is_drawn_in_a_template(tmp_path, byte_tokenizer):
    share = "--conversations=chat", "--conversations_share=0.3"
    printed, rows = prepared_texts(tmp_path, byte_tokenizer, *share)
    n = 100 - int(re.search(r"dropped: conversation not drawn (\d+)", printed)[1])
    assert 15 <= n <= 45
    talks = {row for row in rows if "?" in row}
    turn = "<IM_START>user\n{0}?<IM_END>\n<IM_START>assistant\n{0}!<IM_END>"
    assert talks < {turn.format(i) for i in range(100)}
    again = prepared_texts(tmp_path, byte_tokenizer, *share)
    assert again == (printed, rows)
    other = prepared_texts(tmp_path, byte_tokenizer, *share, "--seed=1")
    assert {row for row in other[1] if "?" in row} != talks
    errors, _ = prepared_texts(tmp_path, byte_tokenizer, share[0], "--conversations_share=0")
    assert "--conversations_share=0.0: expected a share above 0, up to 1" in errors


# -- from files to blocks --------------------------------------------------------------------------

RECORDS = [
    {
        **said("system", "短。", *("user", f"{i}?", "assistant", f"{i}!") * (1 + i % 2)),
        "id": f"P{i // 2}",
    }
    for i in range(60)
]


def in_bytes(record, tokenizer):
    """A conversation in byte_tokenizer's ids, by hand: (ids, 1 for each that is learned)."""
    start, end = tokenizer.special["IM_START"], tokenizer.special["IM_END"]
    ids, bits = [], []
    for number, message in enumerate(record["messages"]):
        opening = b"\n" * (number > 0), [start], message["role"].encode(), b"\n"
        ids += [*(i for part in opening for i in part), *message["content"].encode(), end]
        bits += [0] * sum(map(len, opening))
        bits += [int(message["role"] == "assistant")] * (len(ids) - len(bits))
    return ids, bits


@pytest.fixture
def make(tmp_path, byte_tokenizer, capsys):
    """make(format, paths, layout, block_size) → (meta, {split: Blocks}, the dataset folder)."""

    def run(format, paths, layout="pad", block_size=64):
        folder = tmp_path / f"processed_{layout}"
        shape = dict(layout=layout, block_size=block_size, tokenizer=byte_tokenizer.name)
        meta = prepare(PrepareOptions(paths, folder, format, workers=1, val_fraction=0.2, **shape))
        splits = {s: Blocks(folder, s, byte_tokenizer, block_size) for s in ("train", "val")}
        return meta, splits, folder

    return run


def conversations_in(blocks, tokenizer):
    """The conversations in a split as texts with their masks, whatever the layout: they begin with
    a mark that follows another one, or padding."""
    stream = blocks.tokens.flatten().tolist()
    bits = (blocks.mask.flatten() & 1).tolist()
    start, end = tokenizer.special["IM_START"], tokenizer.special["IM_END"]
    found, previous = [], end
    for token, bit in zip(stream, bits, strict=True):
        if token == start and previous in (end, tokenizer.pad):
            found.append(([], []))
        if token != tokenizer.pad:
            found[-1][0].append(token)
            found[-1][1].append(bit)
        previous = token
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_every_conversation(make, tmp_path, byte_tokenizer, layout):
    path = write_jsonl(tmp_path / "chat.jsonl", RECORDS)
    meta, blocks, folder = make(CHAT, path, layout, 80)
    assert meta["prompt_format"] == "chat" and meta["counts"]["kept"] == 60
    for split in ("train", "val"):
        chosen = [r for r in RECORDS if is_val(r["id"], 0.2) == (split == "val")]
        expected = [in_bytes(record, byte_tokenizer) for record in chosen]
        found = conversations_in(blocks[split], byte_tokenizer)
        assert [ids for ids, _ in sorted(found)] == [ids for ids, _ in sorted(expected)]
        if layout != "packed":  # where a row's first token cannot be learned
            assert sorted(found) == sorted(expected)
        assert meta["counts"][split]["entries"] == len(chosen) > 5
        assert layout in ("concat", "packed") or len(blocks[split]) == len(chosen)
    kept = [r for r in RECORDS if is_val(r["id"], 0.2)]
    lines = (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"id": r["id"], **r} for r in kept]


def test_duplicates_and_sides_go_by_the_content_where_there_is_no_id(make, tmp_path):
    records = [said("user", f"{i}?", "assistant", "a") for i in range(40)]
    other = [
        said("user", "0?", "assistant", " a\n"),  # the same words
        said("user", "0?", "assistant", "b"),
        said("user", "0?a", "user", "?", "assistant", "a"),
    ]
    path = write_jsonl(tmp_path / "chat.jsonl", records + other)
    meta, _, folder = make(CHAT, path)
    assert meta["counts"]["dropped"] == {"duplicate": 1} and meta["counts"]["kept"] == 42
    contents = [[m["content"] for m in r["messages"]] for r in [*records, other[1]]]
    keys = ["".join(each) for each in contents]  # a question and its answer, as of a pair
    keys.append(json.dumps([list(m.values()) for m in other[2]["messages"]]))
    lines = (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == sum(is_val(key, 0.2) for key in keys)


def test_what_is_cut_and_dropped_is_counted(make, tmp_path, byte_tokenizer):
    long = said("user", "u", "assistant", "a", "user", "v", "assistant", "b" * 80)
    path = write_jsonl(
        tmp_path / "chat.jsonl", [*RECORDS, long, said("user", "w" * 80, "assistant", "c")]
    )
    meta, blocks, folder = make(CHAT, path, block_size=80)
    counts = meta["counts"]
    assert counts["dropped"] == {"too long": 1}
    assert (counts["kept"], counts["cut"], counts["left_out"]) == (61, 1, 81)
    assert "of the kept entries' characters, in 1 of them" in table(meta)
    whole = encoded(byte_tokenizer, parse_chat(said("user", "u", "assistant", "a")))[0]
    rows = [row[: len(whole)].tolist() for split in blocks.values() for row in split.tokens]
    assert rows.count(whole) == 1


def test_instructions_become_conversations(make, tmp_path, byte_tokenizer):
    records = [
        {"instruction": "Double it.", "input": f"{i}", "output": f"{2 * i}"} for i in range(40)
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(records), encoding="utf-8")
    meta, blocks, folder = make(ALPACA, tmp_path / "alpaca.json")
    assert meta["prompt_format"] == "chat" and meta["counts"]["kept"] == 40
    found = [ids for split in blocks.values() for ids, _ in conversations_in(split, byte_tokenizer)]
    texts = {"".join(byte_tokenizer.decode(ids)) for ids in found}
    assert texts == {f"user\nDouble it.\n\n{i}\nassistant\n{2 * i}" for i in range(40)}
    first = json.loads((folder / "val.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [m["role"] for m in first["messages"]] == ["user", "assistant"] and first["id"] is None


def test_half_a_surrogate_pair_in_a_message(make, tmp_path):
    held_out = next(f"x{i}" for i in range(99) if is_val(f"x{i}", 0.2))
    path = write_jsonl(tmp_path / "chat.jsonl", RECORDS)
    with open(path, "a", encoding="utf-8") as file:  # in ASCII: JSON spells halves as \\ud83d
        record = {"id": held_out, **said("user", "a\ud83d", "assistant", "😀")}
        file.write(json.dumps(record) + "\n")
    _, _, folder = make(CHAT, path)
    last = json.loads((folder / "val.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert [m["content"] for m in last["messages"]] == ["a\ufffd", "😀"]


def test_the_script(tmp_path, byte_tokenizer):
    path = write_jsonl(tmp_path / "chat.jsonl", RECORDS)
    words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", "--block_size=64"]
    words += [f"--tokenizer={byte_tokenizer.name}", "--workers=1"]
    code, printed, errors = run_here("data/prepare_sft.py", *words, "--format=chat")
    assert code == 0, errors
    assert "read 60 = kept 60 + dropped 0" in printed
    code, printed, errors = run_here("data/prepare_sft.py", *words)
    assert code == 0 and "recognized: chat (messages) in 60" in printed, errors
    code, _, errors = run_here("data/prepare_sft.py", *words, "--format=qa")
    line = errors.replace("\r", "\n").strip().splitlines()[-1]
    assert code == 2 and "chat.jsonl, line 1: field `question` is missing" in line
    assert "--format=chat" in line


def test_real_instructions(shared_data, tmp_path, capsys):
    options = dict(tokenizer="gpt2", workers=1)
    meta = prepare(PrepareOptions(shared_data / "alpaca", tmp_path / "made", ALPACA, **options))
    assert meta["counts"]["read"] == meta["counts"]["kept"] == 3146


# -- runs ------------------------------------------------------------------------------------------

TINY = """
    --n_layer=2 --n_head=2 --n_embd=32 --block_size=64 --batch_size=8 --device=cpu
    --gradient_accumulation_steps=1 --warmup_iters=2 --eval_interval=1000 --eval_iters=10
    --log_interval=1 --sample_tokens=8 --learning_rate=0.01
"""


@pytest.fixture(scope="module")
def train():
    """train(*flags): train.py's main() in this process."""
    module = importlib.import_module("train")
    with pytest.MonkeyPatch.context() as patch:
        # A measurement of the machine, of which no test here depends.
        patch.setattr(module, "peak_flops", lambda *words: None)
        patch.setattr(summary, "matmul_flops", lambda *words: 1e12)

        def run(*flags):
            handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
            patch.setattr(sys, "argv", ["train.py", *TINY.split(), *map(str, flags)])
            try:
                module.main()
            finally:
                for name, handler in handlers.items():
                    signal.signal(name, handler)
                torch.set_flush_denormal(False)

        yield run


TALKS = [
    said("system", system, "user", f"{i}?", "assistant", {"x": "yes", "y": "no"}[system])
    for i in range(40)
    for system in "xy"
]
TALKS += [said("user", f"{i}?", "assistant", "well") for i in range(40)]


@pytest.fixture(scope="module")
def talker(tmp_path_factory, byte_tokenizer, train):
    """A run that has learned to say yes or no as the system's text wants, and well where there is
    none, by the scripts."""
    folder = tmp_path_factory.mktemp("talker")
    path = write_jsonl(folder / "chat.jsonl", TALKS)
    words = [f"--input={path}", "--format=chat", f"--dataset={folder / 'data'}", "--workers=1"]
    words += [f"--tokenizer={byte_tokenizer.name}", "--block_size=64"]
    assert run_here("data/prepare_sft.py", *words)[0] == 0
    train(*words[2:3], words[4], "--max_iters=150", f"--out_dir={folder / 'run'}")
    return folder / "run"


def test_a_run_samples_what_was_held_out(talker):
    assert checkpoint.load(talker).prompt_format == "chat"
    first = json.loads(
        (talker.parent / "data/val.jsonl").read_text(encoding="utf-8").splitlines()[0]
    )
    last = (talker / "samples.txt").read_text(encoding="utf-8").strip().splitlines()[-1]
    asked, answer = (message["content"] for message in first["messages"][-2:])
    assert last == f"step 150: {asked} → {answer}"


def test_sample_answers(talker):
    code, out, err = run_here("sample.py", f"--out_dir={talker}", lines="7?\n\n")
    assert (code, out) == (0, "well\n"), err


def test_the_openai_client_talks_to_it(talker, no_proxy):
    openai = pytest.importorskip("openai")
    trained = checkpoint.load(talker)
    tokenizer, block_size = trained.tokenizer, trained.model.config.block_size
    host = RequestScheduler({"talker": Engine(trained.model, tokenizer.n_vocab, 2)}, QueueLimits())
    service = Service(Options())
    server = listen(make_app(service), "127.0.0.1", 0, threads=4)
    served = Served("talker", tokenizer, trained.prompt_format, block_size, 1, 7, 0)
    threading.Thread(target=server.run, daemon=True).start()
    try:
        service.open({"talker": served}, host)
        url = f"http://127.0.0.1:{server.effective_port}/v1"
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        for record in [*TALKS[:4], *TALKS[-2:]]:
            *messages, expected = record["messages"]
            answer = client.chat.completions.create(model="talker", messages=messages)
            assert answer.choices[0].message.content == expected["content"]
            assert answer.choices[0].finish_reason == "stop"
            turns = [(m["role"], m["content"]) for m in messages]
            assert answer.usage.prompt_tokens == len(chat_ids(tokenizer, "chat", turns, 64))
        client.close()
    finally:
        host.drain(0)
        flush(server)


def test_perplexity_of_what_the_assistant_says(talker):
    assert run_here("evaluations-perplexity.py", f"--out_dir={talker}")[0] == 0
    figures = json.loads((talker / "perplexity.json").read_text(encoding="utf-8"))
    lines = (talker.parent / "data/val.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["messages"][-1]["content"] for line in lines]
    assert figures["text"]["characters"] == sum(map(len, answers))
    assert figures["tokens"]["targets"] == sum(len(answer) + 1 for answer in answers)
    assert figures["tokens"]["perplexity"] == pytest.approx(1, abs=0.02)
    assert figures["text"]["bits_per_char"] == pytest.approx(0, abs=0.05)


def test_rouge_of_the_last_turn(talker):
    """Also of pairs, which ask without a system's text."""
    path = write_jsonl(
        talker.parent / "asked.jsonl",
        [*TALKS, said("system", "x", "user", "new", "assistant", "yes", "user", "left out")],
    )
    assert run_here("evaluations-RougeL.py", f"--out_dir={talker}", f"--input={path}")[0] == 0
    figures = json.loads((talker / "rouge.json").read_text(encoding="utf-8"))
    meta = json.loads((talker.parent / "data/meta.json").read_text(encoding="utf-8"))
    counts = {split: meta["counts"][split]["entries"] for split in ("train", "val")}
    assert figures["seen in training"]["count"] == counts["train"]
    assert figures["held out"]["count"] == counts["val"] and figures["others"]["count"] == 1
    assert figures["seen in training"]["exact_match"] == figures["held out"]["exact_match"] == 1
    pairs = write_jsonl(talker.parent / "qa.jsonl", [{"question": "7?", "answer": "yes"}])
    assert run_here("evaluations-RougeL.py", f"--out_dir={talker}", f"--input={pairs}")[0] == 0


def test_int8_is_measured_on_what_the_assistant_says(talker):
    trained = checkpoint.load(talker)
    lines = (talker.parent / "data/val.jsonl").read_text(encoding="utf-8").splitlines()
    _, passages = held_out_passages(trained)
    assert [p.text for p in passages] == [json.loads(li)["messages"][-1]["content"] for li in lines]


def test_passages_of_a_conversation(byte_tokenizer):
    turns = [("assistant", "hi"), ("user", "q"), ("assistant", "a"), ("assistant", "b")]
    passages = reply_passages(byte_tokenizer, [Conversation(None, tuple(turns))])
    assert [passage.text for passage in passages] == ["a", "b"]  # the greeting answers nobody
    for passage, i in zip(passages, (2, 3), strict=True):
        before = chat_ids(byte_tokenizer, "chat", turns[:i], 1000)
        assert passage.ids.tolist() == [*before, ord(passage.text)] and passage.first == len(before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seen_held_out_and_others(make, tmp_path, byte_tokenizer, layout):
    anonymous = [{"messages": record["messages"]} for record in RECORDS]
    path = write_jsonl(tmp_path / "chat.jsonl", anonymous)
    _, _, folder = make(CHAT, path, layout, 80)
    examples, _ = read_examples(path, "chat")
    wrong = examples[0]._replace(reference="other")
    keys = [
        json.dumps([list(m.values()) for m in r["messages"]], ensure_ascii=False) for r in anonymous
    ]
    expected = [HELD_OUT if is_val(key, 0.2) else SEEN for key in keys]
    assert expected[0] == SEEN
    found = membership([*examples, wrong], folder, byte_tokenizer, "chat")
    assert found == [*expected, OTHER]


def test_what_is_asked_first(tmp_path):
    write_jsonl(tmp_path / "val.jsonl", [said("system", "s", "user", "q", "assistant", "a")])
    example = first_held_out(tmp_path, "chat")
    assert example == (None, "q", "a", (("system", "s"), ("user", "q")))
    assert first_held_out(tmp_path, "qa") is None and first_held_out(tmp_path, "plain") is None
    assert first_held_out(tmp_path / "none", "chat") is None


# -- layouts compared ------------------------------------------------------------------------------


def log_of(folder):
    return [
        json.loads(li) for li in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_runs_of_every_layout_are_judged_alike(make, tmp_path, byte_tokenizer, train, capsys):
    """By one padded val set: before the first step the val losses are equal, though the blocks that
    they train on are not, nor how they read them."""
    path = write_jsonl(tmp_path / "chat.jsonl", TALKS)
    folders = {layout: make(CHAT, path, layout)[2] for layout in LAYOUTS}
    pad = folders["pad"]
    start = tmp_path / "pad"
    words = [f"--tokenizer={byte_tokenizer.name}", "--max_iters=1", "--sample_prompt="]
    train(*words, f"--dataset={pad}", f"--out_dir={start}")
    losses = {}
    for layout, isolate in [*((layout, True) for layout in LAYOUTS), ("concat", False)]:
        out_dir = tmp_path / f"{layout}_{isolate}"
        more = [f"--dataset={folders[layout]}", f"--val_dataset={pad}", f"--out_dir={out_dir}"]
        capsys.readouterr()
        train(*words, f"--init_from={start}", f"--isolate={isolate}".lower(), *more)
        assert f" val ({pad}) blocks" in capsys.readouterr().out
        evaluated, stepped, _ = log_of(out_dir)
        losses[layout, isolate] = evaluated["val_loss"], stepped["loss"]
    model = checkpoint.load(start).model
    # eval_iters=10 batches of 8 take all of the held-out blocks.
    expected = block_perplexity(model, Blocks(pad, "val"), 8)["loss"]
    assert {round(val, 5) for val, _ in losses.values()} == {round(expected, 5)}
    trained = {layout: loss for layout, (_, loss) in losses.items()}
    assert trained["pad", True] == trained["split", True]  # the same blocks: nothing is cut
    assert len(set(trained.values())) == 4


def test_a_row_read_as_one_piece(tmp_path, byte_tokenizer, write_blocks, tiny_model):
    """isolate=false lets a piece see the ones before it in its row, and only training does."""
    rows = pack(byte_tokenizer, [[([65, 66, 67], 1), ([68, 69, 70], 1)]])
    folder = write_blocks(tmp_path / "data", byte_tokenizer, rows, rows)
    model = tiny_model(padded_vocab_size=320, block_size=32)
    apart, together = (Blocks(folder, "train", isolate=isolate) for isolate in (True, False))
    assert apart.isolated and not together.isolated
    plain = write_blocks(tmp_path / "plain", byte_tokenizer, rows, rows, layout="split")
    as_one = block_perplexity(model, Blocks(plain, "train"))
    assert block_perplexity(model, together) == as_one
    assert block_perplexity(model, apart)["loss"] != as_one["loss"]
    with pytest.raises(UserError, match=r"isolate=false: .*train.bin has the layout split"):
        Blocks(plain, "train", isolate=False)


def test_what_a_resumed_run_keeps(make, tmp_path, byte_tokenizer, train):
    path = write_jsonl(tmp_path / "chat.jsonl", TALKS)
    pad, concat = (make(CHAT, path, layout)[2] for layout in ("pad", "concat"))
    words = [f"--tokenizer={byte_tokenizer.name}", "--sample_prompt=", f"--out_dir={tmp_path}/run"]
    train(*words, f"--dataset={concat}", f"--val_dataset={pad}", "--isolate=false", "--max_iters=1")
    resume = [f"--out_dir={tmp_path}/run", "--init_from=resume"]
    train(*resume, "--max_iters=2")
    settings = checkpoint.read_meta(tmp_path / "run")["settings"]
    assert (settings["isolate"], settings["val_dataset"]) == (False, str(pad))
    with pytest.raises(UserError, match="isolate=true contradicts"):
        train(*resume, "--isolate=true")
    with pytest.raises(UserError, match=r"val_dataset=.* has other blocks"):
        train(*resume, f"--val_dataset={concat}")


def test_a_different_block_size_for_evaluation_is_reported(make, tmp_path, byte_tokenizer, train):
    path = write_jsonl(tmp_path / "chat.jsonl", TALKS)
    short, long = make(CHAT, path, "pad")[2], make(CHAT, path, "concat", 128)[2]
    words = [f"--tokenizer={byte_tokenizer.name}", f"--out_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"val\.bin: blocks of 128 tokens, the run expects 64"):
        train(*words, f"--dataset={short}", f"--val_dataset={long}")
