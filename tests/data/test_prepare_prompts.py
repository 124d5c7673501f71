"""data/prepare_prompts.py: prompts and what a reward needs, from every shape, and made sums."""

import json

import numpy as np
import pytest
from tiny_run import run_here, write_jsonl

from minigpt.data.formats import FORMATS, BadRecord
from minigpt.data.shapes.prompts import parse_prompt
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.objectives.rollouts import Prompts

U, A = "user", "assistant"


@pytest.mark.parametrize(
    "record, turns, kept",
    [
        ({"prompt": "写诗。", "lines": 4}, [(U, "写诗。")], {"lines": 4}),
        ({"question": "谁？", "answer": "我。"}, [(U, "谁？")], {"answer": "我。"}),
        ({"prompt": "1+1=", "answer": 2}, [(U, "1+1=")], {"answer": "2"}),
        (
            {"instruction": "翻倍。", "input": "21", "output": "42", "kind": "x"},
            [(U, "翻倍。\n\n21")],
            {"kind": "x", "answer": "42"},
        ),
        ({"instruction": "翻倍。", "input": "21"}, [(U, "翻倍。\n\n21")], {}),
        (
            {"messages": [{"role": "user", "content": "早。"}, {"role": A, "content": "好。"}]},
            [(U, "早。")],
            {"answer": "好。"},
        ),
        (
            {"system": "你是诗人。", "messages": [{"role": "user", "content": "写。"}], "n": [1]},
            [("system", "你是诗人。"), (U, "写。")],
            {"n": [1]},
        ),
        (
            {"question": "谁？", "answer": "我。", "history": [["早", "好"]]},
            [(U, "早"), (A, "好"), (U, "谁？")],
            {"answer": "我。"},
        ),
    ],
)
def test_a_prompt_of_every_shape(record, turns, kept):
    found = parse_prompt(record)
    assert list(found.turns) == turns and found.record == kept


@pytest.mark.parametrize("record", [{}, {"lines": 4}, {"answer": "我。"}])
def test_without_a_prompt(record):
    with pytest.raises(BadRecord, match="field `prompt` is missing: expected a text"):
        parse_prompt(record)


def prepare(tmp_path, records, *words):
    source = write_jsonl(tmp_path / "in.jsonl", records)
    flags = [f"--input={source}", f"--dataset={tmp_path / 'out'}", "--block_size=32"]
    return run_here("data/prepare_prompts.py", *flags, "--workers=1", *words)


def test_blocks_and_records_are_in_the_same_order(tmp_path):
    records = [{"prompt": f"写{n}句。", "lines": n, "answer": f"{n}"} for n in range(2, 60)]
    records += [records[0], {"prompt": "长" * 90}, {"prompt": "", "lines": 3}]
    code, out, err = prepare(tmp_path, records, "--val_fraction=0.2")
    assert code == 0, err
    assert "dropped: too long 1" in out and "dropped: duplicate 1" in out
    assert "dropped: empty prompt 1" in out
    zh = load_tokenizer("zh")
    seen = []
    for split in ("train", "val"):
        found = Prompts(tmp_path / "out", split, zh, 32)
        for row, record in enumerate(found.records):
            text = zh.decode(found.ids(row)[:-1])
            assert found.ids(row)[-1] == zh.answer_mark and text == record["prompt"]
            assert record["prompt"] == f"写{record['lines']}句。"
        seen += [record["lines"] for record in found.records]
    assert sorted(seen) == list(range(2, 60))


@pytest.mark.parametrize("template, end", [("plain", "。"), ("chat", "assistant\n")])
def test_templates(tmp_path, template, end):
    records = [{"prompt": f"写{n}句。", "answer": "好"} for n in range(30)]
    code, out, err = prepare(tmp_path, records, f"--template={template}")
    assert code == 0, err
    zh = load_tokenizer("zh")
    found = Prompts(tmp_path / "out", "train", zh, 32)
    assert zh.decode(found.ids(0)).endswith(end)
    record = found.records[0]
    assert record["answer"] == "好" and ("messages" in record) == (template == "chat")
    if template == "chat":
        assert [each["role"] for each in record["messages"]] == [U, A]


def test_several_turns_need_a_chat_template(tmp_path):
    turns = [
        {"role": U, "content": "早"},
        {"role": A, "content": "好"},
        {"role": U, "content": "?"},
    ]
    code, _, err = prepare(tmp_path, [{"messages": turns}] * 2)
    assert code == 2 and "several messages" in err and "--template=chat" in err


def test_made_sums_are_held_out_alike_by_both_scripts(tmp_path):
    source, words = tmp_path / "sums.jsonl", ["--block_size=32", "--workers=1"]
    words += ["--val_fraction=0.1", f"--input={source}"]
    made = ["--make=sums", "--count=300", f"--input={source}"]
    code, out, err = run_here("data/prepare_prompts.py", *made)
    assert code == 0 and "300 sums" in out, err
    code, _, err = run_here("data/prepare_prompts.py", *words, f"--dataset={tmp_path / 'prompts'}")
    assert code == 0, err
    code, _, err = run_here("data/prepare_sft.py", *words, f"--dataset={tmp_path / 'pairs'}")
    assert code == 0, err
    held_out = [
        {json.loads(line)["id"] for line in open(tmp_path / name / "val.jsonl", encoding="utf-8")}
        for name in ("prompts", "pairs")
    ]
    assert held_out[0] == held_out[1] and len(held_out[0]) > 10
    code, _, err = run_here("data/prepare_prompts.py", *made)
    assert code == 2 and "is there already" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--make=sums"], "expected FILE.jsonl, to write the prompts to"),
        (["--count=1"], "count=1: expected at least 2"),
        (["--count=600000"], "expected at most 500000"),
        (["--make=products"], "expected"),
        (["--template=nothing"], "expected qa, chat"),
    ],
)
def test_what_cannot_be(tmp_path, words, message):
    code, _, err = run_here("data/prepare_prompts.py", *words, f"--dataset={tmp_path / 'out'}")
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_the_folder_is_replaced_whole(tmp_path):
    records = [{"prompt": f"写{n}句。"} for n in range(30)]
    for _ in range(2):
        code, _, err = prepare(tmp_path, records)
        assert code == 0, err
    assert np.fromfile(tmp_path / "out" / "train.mask", np.uint8).max() == 2  # no targets


def test_the_registry_knows_prompts_last():
    assert [*FORMATS][-1] == "prompt"
