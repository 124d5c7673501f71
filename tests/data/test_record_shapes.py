"""Shapes: the same conversation in every shape that people have gives the same tokens; what is
empty is left out by name; an unknown shape says what is known."""

import json
from array import array
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import run_here, write_jsonl

from data_utils import Blocks
from minigpt.data.encoders import DialogueEncoder
from minigpt.data.formats import FORMATS, any_of, formats_of, parse_pair, read_record
from minigpt.data.readers.records import Reject
from minigpt.data.shapes.dialogues import expanded
from minigpt.data.shapes.samples import Conversation, LeftOut, Pair, Preference
from minigpt.tokenizer.tokenizer import load_tokenizer

SFT = any_of(formats_of(Pair, Conversation))
DPO = any_of(formats_of(Preference))
TURNS = (("user", "谁？"), ("assistant", "我。"), ("user", "真的？"), ("assistant", "是。"))


def read(record, format=SFT):
    return read_record(record, format.parse, "a.jsonl", 7)


def messages(turns, role="role", content="content", **names):
    return [{role: names.get(each, each), content: text} for each, text in turns]


# -- one conversation, many shapes -----------------------------------------------------------------


def shapes_of(system, exchanges):
    """A conversation ([(question, answer), …], with a system text or "") in every shape that can
    hold it: [(name, record)]."""
    turns = [(("user", q), ("assistant", a)) for q, a in exchanges]
    turns = [turn for exchange in turns for turn in exchange]
    whole = [("system", system), *turns] if system else turns
    sharegpt = messages(whole, "from", "value", user="human", assistant="gpt")
    (*earlier, (question, answer)) = exchanges
    before = dict(system=system, history=[list(each) for each in earlier])
    parts = [
        {"role": r, "content": [{"type": "text", "text": t[:1]}, {"type": "text", "text": t[1:]}]}
        for r, t in whole
    ]
    yield "OpenAI", {"messages": messages(whole)}
    yield "parts", {"messages": parts}
    yield "MiniMind", {"conversations": messages(whole)}
    yield "ShareGPT", {"conversations": sharegpt}
    yield "upper case", {"Messages": messages(whole, user="USER", assistant="Assistant")}
    yield "LLaMA-Factory", {"conversations": sharegpt[bool(system) :], "system": system}
    yield "a table's cell", {"messages": json.dumps(messages(whole), ensure_ascii=False)}
    yield (
        "Firefly",
        {"system": system, "conversation": [dict(human=q, assistant=a) for q, a in exchanges]},
    )
    yield "Alpaca", {"instruction": question, "input": "", "output": answer, **before}
    yield "input alone", {"instruction": None, "input": question, "output": answer, **before}
    yield "ms-swift", {"query": question, "response": answer, **before}
    yield "prompt", {"Prompt": question, "Completion": answer, **before}
    if not system and not earlier:
        for asked, answered in [
            ("question", "answer"),
            ("Question", "Answer"),
            ("prompt", "response"),
            ("input", "target"),
            ("input", "output"),
            ("问题", "答案"),
        ]:
            yield f"{asked}, {answered}", {asked: question, answered: answer, "kind": "QA"}
        yield "Dolly", {"instruction": question, "context": "", "response": answer}
        yield "SQuAD", {"question": question, "answers": [{"text": answer, "answer_start": 3}]}
        yield "of Hugging Face", {"question": question, "answers": {"text": [answer], "start": [3]}}


WORDS = st.text("中国ab1 ？。\n", min_size=1, max_size=8).map(str.strip).filter(bool)
WORDS = WORDS.filter(lambda text: text != "nan" and not text.startswith("["))


@given(st.just("") | WORDS, st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_a_conversation_is_the_same_in_every_shape(system, exchanges):
    tokenizer, encoder = load_tokenizer("zh"), DialogueEncoder("chat")
    cutter = SimpleNamespace(tokenizer=tokenizer, block_size=10**6)
    found = {}
    for name, record in shapes_of(system, exchanges):
        sample = encoder.fit(read(record))
        ids = [array("I", tokenizer.encode(text)) for text in encoder.texts(sample)]
        found[name] = encoder.encode(sample, ids, cutter, "pad")
    assert len(found) >= 12
    for name, encoded in found.items():
        assert encoded == found["OpenAI"], name


@pytest.mark.parametrize("shape", ["article", "paragraph", "CMRC"])
def test_the_questions_of_a_paragraph(shape):
    asked = [{"id": f"q{i}", "question": f"{i}？", "answers": [{"text": f"{i}。"}]} for i in "12"]
    if shape == "CMRC":
        asked = [
            {"query_id": "q", "query_text": q["question"], "answers": [q["answers"][0]["text"]]}
            for q in asked
        ]
        record = {"context_id": "P", "context_text": "文", "qas": asked}
    else:
        record = {"id": "P", "context": "文", "qas": asked}
        record = {"title": "T", "paragraphs": [record]} if shape == "article" else record
    assert [read(each) for each in expanded(record)] == [
        Pair("P", f"{i}？", f"{i}。") for i in "12"
    ]


def test_a_paragraph_without_an_id_still_keeps_its_questions_together():
    of_hf = [
        {"id": str(i), "context": "文", "question": "谁？", "answers": {"text": ["我"]}}
        for i in (1, 2)
    ]
    first, second = map(read, of_hf)
    assert first.id == second.id not in ("1", "2")


def test_paragraphs_that_are_lines_stay():
    poem = {"title": "静夜思", "paragraphs": ["床前明月光。"]}
    assert list(expanded(poem)) == [poem]


def test_tools_are_text():
    call = {"id": "1", "function": {"name": "length", "arguments": '{"of": "黄河"}'}}
    openai = {
        "messages": [
            {"role": "user", "content": "黄河？"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "5464"},
            {"role": "tool", "content": "公里"},
            {"role": "assistant", "content": "5464 公里。"},
        ],
        "tools": [{"name": "length"}],
    }
    said = '{"name": "length", "arguments": {"of": "黄河"}}'
    factory = {
        "conversations": [
            {"from": "human", "value": "黄河？"},
            {"from": "function_call", "value": said},
            {"from": "observation", "value": "5464"},
            {"from": "observation", "value": "公里"},
            {"from": "gpt", "value": "5464 公里。"},
        ],
        "tools": '{"name": "length"}',
    }
    turns = (
        ("system", '<tools>\n{"name": "length"}\n</tools>'),
        ("user", "黄河？"),
        ("assistant", f"<tool_call>\n{said}\n</tool_call>"),
        (
            "user",
            "<tool_response>\n5464\n</tool_response>\n<tool_response>\n公里\n</tool_response>",
        ),
        ("assistant", "5464 公里。"),
    )
    assert read(openai) == read(factory) == Conversation(None, turns)


# -- empty cells -----------------------------------------------------------------------------------

NOTHING = [None, "", " \n", float("nan"), "nan", "NaN"]


@pytest.mark.parametrize("nothing", NOTHING)
def test_an_empty_side_is_left_out_by_name(nothing):
    for record, reason in [
        ({"question": nothing, "answer": "a"}, "empty question"),
        ({"question": "q", "answer": nothing}, "empty answer"),
        ({"instruction": nothing, "input": nothing, "output": "a"}, "empty instruction"),
        ({"instruction": "q", "output": nothing}, "empty output"),
        (
            {"messages": messages([("user", "q"), ("assistant", nothing)])},
            "empty message of the assistant",
        ),
        ({"question": "q", "answers": [nothing]}, "empty answer"),
    ]:
        found = read(record)
        assert isinstance(found, LeftOut) and str(found) == reason
    good = {
        "instruction": "q",
        "input": nothing,
        "output": "a",
        "system": nothing,
        "history": nothing,
    }
    assert read(good) == Conversation(None, (("user", "q"), ("assistant", "a")))
    for name in ("prompt", "chosen", "rejected"):
        record = {"prompt": "q", "chosen": "a", "rejected": "b", name: nothing}
        assert str(read(record, DPO)) == f"empty {name}"
        for name in ("chosen", "rejected"):
            sides = dict(chosen=messages(TURNS[:2]), rejected=messages(TURNS[:2]))
            sides[name] = [*sides[name][:1], {"role": "assistant", "content": nothing}]
            assert str(read(sides, DPO)) == f"empty {name}"


def test_numbers_are_text():
    assert read({"question": "6 * 7?", "answer": 42}) == Pair(None, "6 * 7?", "42")
    assert read({"question": "1 / 2?", "answer": 0.5}) == Pair(None, "1 / 2?", "0.5")


# -- fields of the user's own, and unknown ones ----------------------------------------------------


def test_fields_with_other_names():
    named = any_of(
        formats_of(Pair, Conversation), {"question": "Ask", "answer": "回应", "system": ""}
    )
    assert named.parse({"Ask": "谁？", "回应": "我。", "answer": "否"}) == Pair(
        None, "谁？", "我。"
    )
    assert named.parse({"ask": "谁？", "回应": "我。"}) == Pair(None, "谁？", "我。")
    found = read({"ask": "谁？", "say": "我。"}, named)
    assert found.reason == "field `回应` (--answer_field) is missing; it has ask, say"
    system = any_of(formats_of(Pair, Conversation), {"system": "sys"})  # which a record may lack
    assert system.parse({"question": "谁？", "answer": "我。"}) == Pair(None, "谁？", "我。")
    turns = (("system", "短。"), ("user", "谁？"), ("assistant", "我。"))
    given = {"sys": "短。", "question": "谁？", "answer": "我。"}
    assert system.parse(given) == Conversation(None, turns)
    squad = any_of(formats_of(Pair), {"input": "context"})
    asked = {"question": "谁？", "context": "我在。", "answer": "我。"}
    assert squad.parse(asked) == Pair(None, "谁？\n\n我在。", "我。")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"qestion": "q", "anwser": "a"}, "did you mean qestion → question, anwser → answer?"),
        ({"a": 1, "b": 2}, "unknown shape: its fields are a, b; known are"),
        ({"question": "q", "b": 2}, "beside `question` there is no `answer` or"),
        ({"question": "q", "b": 2}, "given as in --answer_field=NAME"),
        ({"text": "a"}, "it looks like data for data/prepare.py"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "it looks like data for data/prepare_dpo.py",
        ),
        ({}, "its fields are none"),
    ],
)
def test_an_unknown_shape_says_what_is_known(record, says):
    found = read(record)
    assert isinstance(found, Reject) and says in found.reason and "\n" not in found.reason
    assert found.line == 7 and json.loads(found.text) == record


# -- preferences -----------------------------------------------------------------------------------

PROMPT, GOOD, BAD = TURNS[:3], ("assistant", "是。"), ("assistant", "不。")
HH = "\n\nHuman: 谁？\n\nAssistant: 我。\n\nHuman: 真的？\n\nAssistant:"


@pytest.mark.parametrize(
    "record",
    [
        dict(prompt=messages(PROMPT), chosen="是。", rejected="不。"),
        dict(Prompt=messages(PROMPT), Chosen="是。", Rejected="不。"),
        dict(prompt=messages(PROMPT), chosen=messages([GOOD]), rejected=messages([BAD])),
        dict(chosen=messages([*PROMPT, GOOD]), rejected=messages([*PROMPT, BAD])),
        dict(
            prompt="真的？",
            chosen=messages([*PROMPT, GOOD]),
            rejected=messages([*PROMPT, BAD]),
            score_chosen=8.5,
        ),
        dict(chosen=f"{HH} 是。", rejected=f"{HH} 不。"),
        dict(prompt=HH, chosen=" 是。", rejected=" 不。"),
        dict(
            conversations=messages(PROMPT, "from", "value", user="human", assistant="gpt"),
            chosen={"from": "gpt", "value": "是。"},
            rejected={"from": "gpt", "value": "不。"},
        ),
        dict(
            instruction="真的？",
            input="",
            history=[["谁？", "我。"]],
            chosen="是。",
            rejected="不。",
        ),
        dict(query="真的？", history=[["谁？", "我。"]], response_j="是。", response_k="不。"),
    ],
)
def test_a_preference_in_every_shape(record):
    assert read(record, DPO) == Preference(None, PROMPT, "是。", "不。", None)


def test_system_text_of_a_preference():
    record = dict(system="短。", prompt="谁？", chosen="我。", rejected="你。", kind="wrong", id=3)
    turns = (("system", "短。"), ("user", "谁？"))
    assert read(record, DPO) == Preference("3", turns, "我。", "你。", "wrong")
    sides = {k: messages([("user", "谁？"), ("assistant", k)]) for k in ("chosen", "rejected")}
    assert read({"system": "短。", "prompt": "谁？", **sides}, DPO).turns == turns


def test_answers_that_part_early_are_left_out():
    sides = [[TURNS[0], ("assistant", answer), *TURNS[2:]] for answer in "ab"]
    record = dict(zip(("chosen", "rejected"), map(messages, sides), strict=True))
    assert str(read(record, DPO)) == "answers of several turns"
    assert "no prompt" in read({"chosen": "a", "rejected": "b"}, DPO).reason


def test_any_shape_of_one_question_is_a_pair():
    for name, record in shapes_of("", [("谁？", "我。")]):
        assert read_record(record, parse_pair, "a", 1) == Pair(None, "谁？", "我。"), name
    found = read_record({"messages": messages(TURNS)}, parse_pair, "a", 1)
    assert found.reason == "several turns or a system text; expected one question and its answer"


# -- the scripts -----------------------------------------------------------------------------------


def test_the_table_names_shapes_empty_cells_and_unread_fields(tmp_path, byte_tokenizer):
    records = [{"Question": f"{i}?", "Answer": "a", "source": "x"} for i in range(30)]
    records += [{"input": f"{i}!", "target": "b"} for i in range(20)]
    records += [{"question": "q", "answer": float("nan")}] * 3
    path = write_jsonl(tmp_path / "a.jsonl", records)
    words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", "--block_size=32", "--workers=1"]
    code, printed, errors = run_here(
        "data/prepare_sft.py", *words, f"--tokenizer={byte_tokenizer.name}"
    )
    assert code == 0, errors
    for line in (
        "read 53 = kept 50 + dropped 3",
        "dropped: empty answer 3",
        "recognized: qa (question, answer) in 33",
        "recognized: qa (input, target) in 20",
        "fields that are not read: source (30)",
    ):
        assert line in printed
    blocks = Blocks(tmp_path / "made", "train", byte_tokenizer)
    assert blocks.meta["prompt_format"] == "qa"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "q", "output": "a"}, "chat"),
        ({"question": "q", "answer": "a", "history": []}, "chat"),
        ({"question": "q", "answer": "a"}, "qa"),
    ],
)
def test_the_template_suits_the_first_records(tmp_path, byte_tokenizer, record, expected):
    first = next(iter(record))
    path = write_jsonl(tmp_path / "a.jsonl", [{**record, first: f"{i}?"} for i in range(30)])
    words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", "--block_size=64", "--workers=1"]
    code, _, errors = run_here("data/prepare_sft.py", *words, f"--tokenizer={byte_tokenizer.name}")
    assert code == 0, errors
    assert json.loads((tmp_path / "made/meta.json").read_text())["prompt_format"] == expected


def test_several_turns_do_not_fit_a_question(tmp_path, byte_tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages(TURNS)}] * 9)
    words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", "--template=qa", "--workers=1"]
    code, _, errors = run_here("data/prepare_sft.py", *words, f"--tokenizer={byte_tokenizer.name}")
    assert code == 2 and "it has several turns" in errors and "--template=chat" in errors


def test_every_format_is_read_by_one_script():
    names = {"qa", "alpaca", "chat", "squad", "preference", "text", "poem", "prompt"}
    assert set(FORMATS) == names
