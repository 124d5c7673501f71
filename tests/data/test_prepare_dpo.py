"""Preference pairs → blocks: two rows a pair, masks by hand, what is dropped, both sides of val."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here, write_jsonl

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.data.block_format import PREFERENCES
from minigpt.data.encoders import PreferenceEncoder
from minigpt.data.formats import FORMATS, Pair, parse_preference, read_record
from minigpt.data.pipeline import PrepareOptions, prepare
from minigpt.data.readers.chunks import Reject
from minigpt.synthesis.preferences import make_preferences
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.objectives.dpo import Pairs

EOT, PAD, MARK, START, END = range(256, 261)


def pair(prompt, chosen, rejected, **more):
    return dict(prompt=prompt, chosen=chosen, rejected=rejected, **more)


def ids(text):
    return list(text.encode())


def options_of(path, folder, tokenizer, prompt_format="qa", block_size=32):
    more = dict(tokenizer=tokenizer.name, block_size=block_size, layout="pad", workers=1)
    more |= dict(encoder=PreferenceEncoder(prompt_format), val_fraction=0.4, facts=PREFERENCES)
    return PrepareOptions(path, folder, FORMATS["preference"], **more)


@pytest.fixture
def prepared(tmp_path, byte_tokenizer):
    """prepared(records, format): the dataset folder and meta.json, made in this process."""

    def make(records, prompt_format="qa", block_size=32):
        path = write_jsonl(tmp_path / "preferences.jsonl", records)
        folder = tmp_path / "blocks"
        return folder, prepare(options_of(path, folder, byte_tokenizer, prompt_format, block_size))

    return make


def rows_of(folder, split):
    """[(ids before PAD, places of the targets), …] read byte by byte."""
    tokens = np.fromfile(folder / f"{split}.bin", "<u2").reshape(-1, 32)
    mask = np.fromfile(folder / f"{split}.mask", "u1").reshape(-1, 32)
    return [
        (row[: list(row).index(PAD)].tolist(), np.flatnonzero(marks & 1).tolist())
        for row, marks in zip(tokens, mask, strict=True)
    ]


MANY = [pair(f"q{i}", f"good {i}", f"bad {i}") for i in range(40)]


def test_a_question_and_two_answers_are_two_rows(prepared):
    folder, meta = prepared(MANY)
    assert meta["kind"] == "preferences" and meta["layout"] == "pad"
    assert meta["prompt_format"] == "qa" and meta["counts"]["kept"] == 40
    found = []
    for split in ("train", "val"):
        rows = rows_of(folder, split)
        assert len(rows) % 2 == 0
        for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True):
            number = re.search(rb"good (\d+)", bytes(i for i in chosen[0] if i < 256))[1].decode()
            asked = [*ids(f"q{number}"), MARK]
            for (row, targets), answer in ((chosen, "good"), (rejected, "bad")):
                assert row == [*asked, *ids(f"{answer} {number}"), EOT]
                assert targets == list(range(len(asked), len(row)))  # the answer and its end
            found.append(int(number))
    assert sorted(found) == list(range(40))


def test_a_conversation_is_judged_by_its_last_turn(prepared):
    asked = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [dict(role=role, content=content) for role, content in asked]
    records = [pair(messages, "y", "no", id=str(i)) for i in range(1)]
    records += [pair(f"q{i}", "y", "no") for i in range(20)]
    folder, _ = prepared(records, "chat", block_size=64)
    tokens = np.fromfile(folder / "train.bin", "<u2").reshape(-1, 64)
    mask = np.fromfile(folder / "train.mask", "u1").reshape(-1, 64)
    words = b"\n".join(
        b"<" + role.encode() + b"\n" + content.encode() + b">" for role, content in asked
    )
    expected = [{60: START, 62: END}.get(byte, byte) for byte in words + b"\n<assistant\ny>"]
    (row,) = [i for i, row in enumerate(tokens) if row[: len(expected)].tolist() == expected]
    assert row % 2 == 0
    targets = np.flatnonzero(mask[row] & 1).tolist()
    assert targets == [len(expected) - 2, len(expected) - 1]  # y and its end, not the turn before
    assert bytes(tokens[row + 1, len(expected) - 2 : len(expected)].tolist()) == b"no"
    assert tokens[row + 1, len(expected)] == END


def test_too_long_and_equal_answers_are_dropped_and_counted(prepared):
    others = [pair("same", "x", " x "), pair("long", "x", "y" * 40), pair("long", "x" * 40, "y")]
    room = 32 - len("just") - 2  # the mark and EOT
    others += [pair("just", "x" * room, "y"), pair("just", "x" * (room + 1), "y")]
    _, meta = prepared([*MANY, *others, MANY[0]])
    assert meta["counts"]["dropped"] == {"too long": 3, "equal answers": 1, "duplicate": 1}
    assert meta["counts"]["kept"] == 41 and meta["counts"]["read"] == 46
    blocks = sum(meta["counts"][split]["blocks"] for split in ("train", "val"))
    assert blocks == 82


@given(st.lists(st.integers(0, 9), min_size=30, max_size=60))
@settings(max_examples=8)
@pytest.mark.parametrize("by_id", [False, True])
def test_what_shares_an_id_or_a_prompt_is_on_one_side(
    tmp_path_factory, byte_tokenizer, by_id, keys
):
    """keys[i]: the id, or the prompt, of pair i."""
    records = [
        pair(f"q{i}", "a", "b", id=str(key)) if by_id else pair(f"k{key}", f"a{i}", "b")
        for i, key in enumerate(keys)
    ]
    records += [pair(f"x{i}", "a", "b") for i in range(40)]  # so that no split is empty
    folder = tmp_path_factory.mktemp("sides")
    path = write_jsonl(folder / "p.jsonl", records)
    prepare(options_of(path, folder / "blocks", byte_tokenizer))
    shared = {record["prompt"]: record.get("id", record["prompt"]) for record in records}
    sides = []
    for split in ("train", "val"):
        prompts = [bytes(row[: row.index(MARK)]) for row, _ in rows_of(folder / "blocks", split)]
        sides.append({shared[prompt.decode()] for prompt in prompts})
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(shared.values())


def test_val_jsonl_reads_as_what_was_chosen(prepared):
    folder, meta = prepared([record | {"id": "7", "kind": "cut"} for record in MANY[:1]] + MANY[1:])
    lines = (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == meta["counts"]["val"]["entries"] > 0
    record = json.loads(lines[0])
    assert set(record) == {"id", "question", "answer", "rejected", "kind"}
    # Line i is pair i of the blocks.
    for line, (row, _) in zip(lines, rows_of(folder, "val")[0::2], strict=True):
        record = json.loads(line)
        assert row == [*ids(record["question"]), MARK, *ids(record["answer"]), EOT]


BAD = [
    ({"prompt": "q", "chosen": "a"}, "field `rejected` is missing"),
    (pair("q", "a", True), "field `rejected`: expected text, found bool"),
    ({"chosen": "a", "rejected": "b"}, "no prompt: expected the field `prompt`, or"),
    (pair([{"role": "robot", "content": "x"}], "a", "b"), "role is 'robot'"),
    (pair([{"role": "system", "content": "x"}], "a", "b"), "the last message is the system's"),
    (
        pair([dict(role=r, content="x") for r in ("user", "assistant")], "a", "b"),
        "the last message is the assistant's, not the user's",
    ),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_record_says_what_is_wrong(record, reason):
    found = read_record(record, parse_preference, "p.jsonl", 3)
    assert isinstance(found, Reject) and reason in found.message()
    assert found.message().startswith("p.jsonl, line 3: ")


def test_messages_are_for_chat_alone(prepared):
    with pytest.raises(UserError, match="give --template=chat"):
        prepared([pair([dict(role=r, content="q") for r in ("system", "user")], "a", "b")])
    with pytest.raises(UserError, match="line 1: field `chosen` is missing"):
        prepared([{"prompt": "q", "answer": "a"}])


def test_each_stage_refuses_the_other_ones_blocks(prepared, write_blocks, byte_tokenizer, tmp_path):
    folder, _ = prepared(MANY)
    with pytest.raises(UserError, match="holds preferences, only for --stage=dpo"):
        Blocks(folder, "train")
    ordinary = np.full((2, 8), 65), np.ones((2, 8), np.uint8)
    other = write_blocks(tmp_path / "other", byte_tokenizer, ordinary, ordinary)
    with pytest.raises(UserError, match=r"holds no preference pairs.*prepare_dpo\.py"):
        Pairs(other, "train")
    assert len(Pairs(folder, "train")) == len(rows_of(folder, "train")) / 2


def test_odd_rows_are_no_pairs(prepared):
    folder, _ = prepared(MANY)
    for suffix, size in ((".bin", 64), (".mask", 32)):
        path = folder / f"val{suffix}"
        path.write_bytes(path.read_bytes()[:-size])
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    meta["counts"]["val"]["blocks"] -= 1
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match="not two blocks with an answer for every pair"):
        Pairs(folder, "val")


# -- pairs that are made ---------------------------------------------------------------------------


def test_made_pairs_by_hand():
    pairs = [Pair("1", "甲？", "一二三四。"), Pair("2", "乙？", "五"), Pair(None, "丙？", "六七")]
    made = make_preferences(pairs, seed=3)
    assert made == make_preferences(pairs, seed=3)
    by_kind = {(r["prompt"], r["kind"]): r for r in made}
    assert by_kind["甲？", "cut"]["rejected"] == "一二"
    assert by_kind["甲？", "loop"]["rejected"] == "一二一二一二"
    # Without an id: the split key of the pair, so that both hold out the same pairs.
    assert by_kind["丙？", "loop"] == pair("丙？", "六七", "六六六", id="丙？六七", kind="loop")
    assert ("乙？", "cut") not in by_kind and ("乙？", "loop") not in by_kind  # no half to repeat
    answers = {p.answer for p in pairs}
    assert all(r["rejected"] in answers for r in made if r["kind"] == "another")


@given(st.lists(st.text().map(str.strip).filter(bool), min_size=1, max_size=8))
def test_a_made_answer_is_never_the_right_one(answers):
    records = make_preferences([Pair(None, "q", answer) for answer in answers])
    assert all(record["rejected"] not in ("", record["chosen"]) for record in records)


def test_the_command_makes_and_prepares(tmp_path):
    pairs = [dict(question=f"第{i}个？", answer=f"答案是{i * 7}。") for i in range(30)]
    made, folder = tmp_path / "preferences.jsonl", tmp_path / "dpo"
    source = write_jsonl(tmp_path / "qa.jsonl", pairs)
    words = [f"--from_qa={source}", f"--input={made}", f"--dataset={folder}", "--block_size=32"]
    code, out, err = run_here("data/prepare_dpo.py", *words, "--workers=1")
    assert code == 0, err
    n_made = len(made.read_text(encoding="utf-8").splitlines())
    assert 60 <= n_made <= 90 and f"{n_made} preference pairs" in out
    assert f"kept {n_made}" in out
    assert len(Pairs(folder, "train", load_tokenizer("zh"), 32)) > 30
    code, _, err = run_here("data/prepare_dpo.py", *words)
    assert code == 2 and "is there already" in err and err.count("\n") == 1
    code, _, err = run_here("data/prepare_dpo.py", f"--from_qa={source}", f"--input={source}")
    assert code == 2 and "--input names another file" in err and err.count("\n") == 1
    code, _, err = run_here("data/prepare_dpo.py", f"--from_qa={source}", "--input=qa/")
    assert code == 2 and "expected FILE.jsonl" in err
