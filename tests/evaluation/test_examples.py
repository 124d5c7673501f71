"""Examples: read from files, drawn, answered, split into seen and held out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import pack, save_scripted_run, write_jsonl

from minigpt.common.errors import UserError
from minigpt.evaluation.examples import (
    HELD_OUT,
    OTHER,
    SEEN,
    Example,
    draw,
    first_sentence,
    membership,
    read_examples,
    read_texts,
    write_answers,
)
from minigpt.inference.engine import Engine
from minigpt.models import checkpoint


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("黄河很长。它很黄。", "黄河很长。", "它很黄。"),
        ("他问：“是吗？”她不答。", "他问：“是吗？”", "她不答。"),
        ("这是例子．下一句．", "这是例子．", "下一句．"),
        ("圆周率约为3.14。很有用。", "圆周率约为3.14。", "很有用。"),
        ("It is 3.14 long. Very.", "It is 3.14 long.", "Very."),
        ("真的？！是。", "真的？！", "是。"),
        ("没有句号", "没有句号", ""),
        ("只有一句。", "只有一句。", ""),
        ("", "", ""),
    ],
)
def test_first_sentence(text, first, rest):
    assert first_sentence(text) == (first, rest)


@given(st.text(alphabet="黄河。！”.a \n", max_size=20))
def test_first_sentence_loses_nothing_but_blanks(text):
    assert "".join("".join(first_sentence(text)).split()) == "".join(text.split())


def test_pairs_and_entries_are_read_for_the_runs_prompt_format(tmp_path):
    qa = write_jsonl(tmp_path / "qa.jsonl", [{"question": "谁？", "answer": " 孔子 ", "id": 3}])
    assert read_examples(qa, "qa") == ([Example("3", "谁？", "孔子")], 0)
    wiki = [
        {"id": "a", "title": "黄河", "text": "黄河\n\n黄河（）很长。它很黄。"},
        {"id": "b", "title": "长江", "text": "长江\n\n只有一句。"},
    ]
    wiki = write_jsonl(tmp_path / "wiki.jsonl", wiki)
    assert read_examples(wiki, "plain") == ([Example("a", "黄河很长。", "它很黄。")], 1)


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "qa.jsonl"
    path.write_text(
        '{"question": "谁？", "answer": "他"}\n{"question": "谁？"}\n', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"qa\.jsonl, line 2: field `answer` is missing"):
        read_examples(path, "qa")
    path.write_text('{"question": "谁？", "answer": "他"}\n{"question\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"qa\.jsonl, line 2: .*JSON"):
        read_examples(path, "qa")


def test_texts_are_whole_and_not_cleaned(tmp_path):
    novel = tmp_path / "novel.txt"
    text = " \n第一回\n" + "他说：“好（）。”\n\n" * 3000
    novel.write_text(text, encoding="utf-8")
    assert read_texts(novel) == [text]
    entries = write_jsonl(tmp_path / "wiki.jsonl", [{"text": "甲（）\n乙"}, {"text": "丙"}])
    assert read_texts(entries) == ["甲（）\n乙", "丙"]


def test_a_draw_is_seeded_and_keeps_the_order():
    examples = [Example(str(i), "", "") for i in range(50)]
    drawn = draw(examples, 10, seed=1)
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn, key=lambda example: int(example.id)) == draw(examples, 10, 1)
    assert drawn != draw(examples, 10, seed=2) and drawn != examples[:10]
    assert draw(examples, None, 1) == draw(examples, 99, 1) == examples


def test_answers_are_the_same_in_any_batch(byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=32)
    examples = [Example(None, "?" * n, "") for n in (1, 1, 2, 3, 3)]
    sampling = dict(max_new_tokens=8, temperature=0.9, top_k=5)
    ended = []
    texts = [
        write_answers(
            Engine(model, 261, n_slots),
            byte_tokenizer,
            "qa",
            examples,
            on_end=lambda: ended.append(1),
            **sampling,
        )
        for n_slots in (1, 3)
    ]
    assert texts[0] == texts[1] and len(ended) == 10
    assert len(set(texts[0])) == 5


def test_an_answer_has_no_half_character(tmp_path, byte_tokenizer):
    run = checkpoint.load(save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河"))
    engine = Engine(run.model, 261, n_slots=1)
    examples = [Example(None, "？", "")]
    answers = [
        write_answers(engine, run.tokenizer, "qa", examples, temperature=0, max_new_tokens=length)
        for length in (2, 3, 5, 99)
    ]
    expected = [("", "length"), ("黄", "length"), ("黄", "length"), ("黄河", "stop")]
    assert [answer for (answer,) in answers] == expected


@pytest.mark.parametrize("layout", ["pad", "concat", "packed"])
def test_pairs_seen_and_held_out_are_distinguished(tmp_path, byte_tokenizer, write_blocks, layout):
    pairs = []
    for question, answer in (("1?", "one"), ("2?", "two"), ("7?", "seven")):
        asked = [*question.encode(), byte_tokenizer.answer_mark]
        pairs.append(([*asked, *answer.encode(), byte_tokenizer.eot], len(asked)))
    rows = {"pad": [[pair] for pair in pairs], "concat": [pairs[:2], pairs[2:]]}
    if layout == "packed":  # one stream, cut anywhere
        stream = [i for ids, _ in pairs for i in ids]
        rows["packed"] = [[(stream[:9], 1)], [(stream[9:18], 0)], [(stream[18:], 0)]]
    width = 9 if layout == "packed" else 32
    blocks = pack(byte_tokenizer, rows[layout], width)
    folder = tmp_path / "data"
    write_blocks(folder, byte_tokenizer, blocks, blocks, layout=layout, prompt_format="qa")
    kept = [
        {"id": "d3", "question": "3?", "answer": "three"},
        {"id": None, "question": "4?", "answer": "four"},
        {"id": "d7", "question": "8?", "answer": "eight"},
    ]
    write_jsonl(folder / "val.jsonl", kept)
    examples = {
        Example("d1", "1?", "one"): SEEN,
        Example(None, "2?", "two"): SEEN,
        Example("d1", "1?", "eins"): OTHER,  # another answer than the one it was taught
        Example("d3", "3?", "three"): HELD_OUT,
        Example("d3", "What is 3?", "three"): HELD_OUT,  # the whole source entry is held out
        Example(None, "4?", "four"): HELD_OUT,
        Example("d9", "3?", "three"): OTHER,
        Example("d7", "7?", "seven"): SEEN,  # whatever its id says, it was trained on
        Example(None, "5?", "five"): OTHER,
    }
    assert membership(list(examples), folder, byte_tokenizer, "qa") == list(examples.values())


def test_entries_held_out_are_found_by_their_text(tmp_path, byte_tokenizer, write_blocks):
    blocks = pack(byte_tokenizer, [[([*b"river"], 1)]])
    folder = write_blocks(tmp_path / "data", byte_tokenizer, blocks, blocks)
    kept = ["长江很长。它在中国。", "It is\u2028long. It is late."]
    write_jsonl(folder / "val.jsonl", [{"id": "001:1", "title": "", "text": t} for t in kept])
    examples = [
        Example("001:1", "黄河。", "黄。"),  # of another file 001.txt
        Example("x", "长江很长。", "它在中国。"),
        *read_examples(folder / "val.jsonl", "plain")[0],
    ]
    found = membership(examples, folder, byte_tokenizer, "plain")
    assert found == [OTHER, HELD_OUT, HELD_OUT, HELD_OUT]
    with pytest.raises(UserError, match="prompt format is not qa"):
        membership(examples, folder, byte_tokenizer, "qa")
    (folder / "val.jsonl").unlink()
    with pytest.raises(UserError, match=r"val\.jsonl: cannot be read"):
        membership(examples, folder, byte_tokenizer, "plain")
