"""Formats: every record of the registry, and what a record that cannot be used says."""

import json
import subprocess
import sys

import pytest
from tiny_run import run_here

from minigpt.data.formats import (
    FORMATS,
    SCRIPTS,
    Conversation,
    Entry,
    Pair,
    describe,
    formats_of,
    parse_alpaca,
    parse_chat,
    parse_dialogue,
    parse_qa,
    parse_text,
    read_record,
    recognize,
)


def message(role, content):
    return {"role": role, "content": content}


def said(*turns):
    """A record of messages: said("user", "谁？", "assistant", "我。")."""
    return {"messages": [message(*turn) for turn in zip(turns[::2], turns[1::2], strict=True)]}


# -- the registry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_its_example_and_is_recognized_by_it(name):
    format = FORMATS[name]
    assert format.name == name and recognize(format.example) is format
    assert format.sample_type in SCRIPTS
    for group in format.fields:
        assert f"`{group[0]}`" in format.description
        without = {key: value for key, value in format.example.items() if key not in group}
        assert not format.matches(without)
        reject = read_record(without, format.parse, "a", 1)
        if name != "squad":  # without `answers`, a record of another format
            assert reject.reason.startswith(f"field `{group[0]}` is missing")


def test_help_lists_every_format():
    for script in set(SCRIPTS.values()):
        formats = [each for each in FORMATS.values() if SCRIPTS[each.sample_type] == script]
        lines = describe(formats)
        for format in formats:
            assert json.dumps(format.example, ensure_ascii=False) in lines
            assert f"    {format.name} " in lines
        assert lines in run_here(script, "--help")[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_documents_list_every_format_to_fine_tune_on(root, language):
    page = root / f"docs/{language}/fine-tuning.md"
    if not page.is_file():
        pytest.skip("the page is not written yet")
    text = page.read_text(encoding="utf-8")
    for name in formats_of(Pair, Conversation):
        assert f"`{name}`" in text, f"{page}: describe the format {name}"


ADDED = """
import runpy, sys
from minigpt.data.formats import FORMATS, TRAINED_ON, Format, Pair

def parse(record):
    return Pair(None, record["q"], record["a"])

fields = ("q",), ("a",)
added = Format("short", fields, parse, "`q`, `a`: a short pair", {"q": "?", "a": "!"})
FORMATS["short"] = TRAINED_ON["short"] = added
for line in sys.stdin:
    sys.argv = line.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
"""


def test_one_entry_adds_a_format(root, tmp_path):
    """It is in --help, in an error's hint, it is prepared, and a tokenizer is trained on it."""
    records = "".join(json.dumps({"q": f"{i}?", "a": "yes"}) + "\n" for i in range(40))
    (tmp_path / "a.jsonl").write_text(records)

    made = f"--dataset={tmp_path}/made --block_size=16 --workers=1"
    commands = [
        "data/prepare_sft.py --help",
        f"data/prepare.py --input={tmp_path}/a.jsonl {made}",
        f"data/prepare_sft.py --input={tmp_path}/a.jsonl {made} --format=short",
        f"data/train_tokenizer.py --input={tmp_path}/a.jsonl --output={tmp_path}/tokenizer "
        "--vocab_size=270 --val_fraction=0",
    ]
    done = subprocess.run(
        [sys.executable, "-c", ADDED],
        cwd=root,
        input="\n".join(commands),
        capture_output=True,
        encoding="utf-8",
    )
    assert "    short   `q`, `a`: a short pair" in done.stdout
    assert "it looks like --format=short of data/prepare_sft.py" in done.stderr
    assert "read 40 = kept 40" in done.stdout
    assert "a.jsonl: 80 texts, " in done.stdout


# -- records that are good -------------------------------------------------------------------------


def test_a_pair():
    good = {"question": " 谁？\n", "answer": "我。 ", "id": 7}
    assert parse_qa(good) == ("7", "谁？", "我。")
    assert parse_qa({"question": "谁？", "answer": "我。"}).id is None


def test_an_entry_is_named_by_its_line():
    record = {"text": "文", "title": None}
    assert read_record(record, parse_text, "a", 3) == Entry("a:3", "", "文")


def test_any_dialogue_is_a_conversation():
    turns = (("user", "谁？"), ("assistant", "我。"))
    for record in (
        {"question": "谁？", "answer": "我。"},
        {"instruction": "谁？", "output": "我。"},
        said("user", "谁？", "assistant", "我。"),
    ):
        assert parse_dialogue(record) == Conversation(None, turns)


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        ({"instruction": " Say it.\n", "output": "It. "}, "Say it."),
        ({"instruction": "Say it.", "input": "", "output": "It."}, "Say it."),
        ({"instruction": "Say it.", "input": " \n", "output": "It."}, "Say it."),
        ({"instruction": "Say it.", "input": None, "output": "It."}, "Say it."),
        (
            {"instruction": "Say it.", "input": " Well\nnow ", "output": "It."},
            "Say it.\n\nWell\nnow",
        ),
    ],
)
def test_an_instruction_and_its_input_are_one_message(record, asked):
    turns = (("user", asked), ("assistant", "It."))
    assert parse_alpaca(record) == Conversation(None, turns)
    assert parse_alpaca({**record, "id": 7}) == Conversation("7", turns)


@pytest.mark.parametrize(
    ("parse", "record", "says"),
    [
        (
            parse_alpaca,
            {"instruction": "Say."},
            "field `output` is missing (it looks like data for data/prepare_prompts.py)",
        ),
        (
            parse_alpaca,
            {"instruction": "Say.", "output": "a", "input": ["b"]},
            "field `input`: expected text, found list",
        ),
        (
            parse_alpaca,
            {"question": "谁？", "answer": "我。"},
            "field `instruction` is missing (it looks like --format=qa of data/prepare_sft.py)",
        ),
        (
            parse_qa,
            {"instruction": "Say.", "output": "a"},
            "field `question` is missing (it looks like --format=alpaca of data/prepare_sft.py)",
        ),
        (
            parse_qa,
            said("user", "a", "assistant", "b"),
            "field `question` is missing (it looks like --format=chat of data/prepare_sft.py)",
        ),
        (
            parse_chat,
            {"instruction": "Say.", "output": "a"},
            "field `messages` is missing (it looks like --format=alpaca of data/prepare_sft.py)",
        ),
        (
            parse_chat,
            {"text": "a"},
            "field `messages` is missing (it looks like data for data/prepare.py)",
        ),
        (
            parse_text,
            {"question": "谁？", "answer": "我。"},
            "field `text` is missing (it looks like --format=qa of data/prepare_sft.py)",
        ),
        (
            parse_qa,
            {"prompt": "谁？", "chosen": "我。", "rejected": "你。"},
            "field `answer` is missing (it looks like data for data/prepare_dpo.py)",
        ),
        (
            parse_qa,
            {"question": "谁？"},
            "field `answer` is missing (it looks like data for data/prepare_prompts.py)",
        ),
        (
            parse_qa,
            {"question": "谁？", "answer": ["我"]},
            "field `answer`: expected text, found list",
        ),
        (parse_chat, {"messages": "a"}, "field `messages`: expected a list, found str"),
        (parse_chat, {"messages": ["a"]}, "message 1: expected a JSON object, found str"),
        (
            parse_chat,
            said("user", "a", "robot", "b"),
            "message 2: its role is 'robot'; expected one of system, user, assistant, tool",
        ),
        (
            parse_chat,
            {"messages": [{"content": "a"}]},
            "message 1: its role is None; expected one of system, user, assistant, tool",
        ),
        (
            parse_chat,
            {"messages": [message("user", "a"), {"role": "assistant"}]},
            "message 2: `content` is missing",
        ),
        (
            parse_chat,
            {"messages": [message("user", [{"type": "image_url", "image_url": {}}])]},
            "message 1: a part of the type image_url is no text and cannot be learned",
        ),
        (parse_chat, {"messages": []}, "no turn of the assistant after one of the user"),
        (
            parse_chat,
            said("assistant", "a", "user", "b", "system", "c"),
            "no turn of the assistant after one of the user",
        ),
    ],
)
def test_records_that_cannot_be_used(parse, record, says):
    reject = read_record(record, parse, "a.jsonl", 5)
    assert reject[:3] == ("a.jsonl", 5, says) and json.loads(reject.text) == record
    assert reject.message().count("\n") == 0
