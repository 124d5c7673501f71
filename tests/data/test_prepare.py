"""data/prepare.py and data/prepare_sft.py from files to blocks, through the library and as run."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.data import pipeline
from minigpt.data.encoders import DialogueEncoder
from minigpt.data.formats import FORMATS
from minigpt.data.hashing import SeenHashes, is_val
from minigpt.data.pipeline import PrepareOptions, automatic_fraction, prepare, read_entries, table
from minigpt.data.readers import containers, records
from minigpt.tokenizer.tokenizer import load_tokenizer

LAYOUTS = ["pad", "split", "concat", "packed"]
TEXTS = [f"第{i}天，天下大势。" + "分久必合，合久必分。" * (i % 7) for i in range(60)]


def write_lines(path, records):
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def texts_file(tmp_path):
    return write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


@pytest.fixture
def make(tmp_path, byte_tokenizer, capsys):
    """make(format, paths, layout, block_size, …) → (meta, {split: Blocks}, the dataset folder)."""

    def run(format, paths, layout="concat", block_size=64, **options):
        options = {"workers": 1, "tokenizer": byte_tokenizer.name, **options}
        folder = tmp_path / "processed"
        shape = dict(layout=layout, block_size=block_size)
        meta = prepare(PrepareOptions(paths, folder, FORMATS[format], **shape, **options))
        tokenizer = load_tokenizer(options["tokenizer"])
        return meta, {s: Blocks(folder, s, tokenizer, block_size) for s in ("train", "val")}, folder

    return run


def pieces_of(blocks, pad):
    """[(ids, mask bits), …] of all pieces in the blocks, without padding."""
    found = []
    for row, bits in zip(blocks.tokens.tolist(), blocks.mask.tolist(), strict=True):
        begins = [i for i, bit in enumerate(bits) if bit & 2]
        for begin, end in zip(begins, [*begins[1:], len(row)], strict=True):
            if row[begin] != pad:
                found.append((row[begin:end], [bit & 1 for bit in bits[begin:end]]))
    return found


def joined_texts(blocks, tokenizer):
    """The texts in blocks of split or packed: their tokens in order, apart at EOT."""
    ids = [i for i in blocks.tokens.flatten().tolist() if i != tokenizer.pad]
    texts, start = [], 0
    for stop in (i for i, token in enumerate(ids) if token == tokenizer.eot):
        texts.append(tokenizer.decode(ids[start:stop]))
        start = stop + 1
    assert start == len(ids)  # EOT ends every text
    return texts


# -- plain text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["split", "packed"])
def test_no_text_is_lost_and_val_is_apart(make, texts_file, byte_tokenizer, layout):
    meta, blocks, folder = make("text", texts_file, layout, val_fraction=0.2)
    val = [text for text in TEXTS if is_val(text, 0.2)]
    assert 3 < len(val) < 30
    assert joined_texts(blocks["val"], byte_tokenizer) == val
    assert joined_texts(blocks["train"], byte_tokenizer) == [t for t in TEXTS if t not in val]
    name = texts_file.as_posix()
    lines = [f"{name}:{TEXTS.index(text) + 1}" for text in val]
    expected = [{"id": i, "title": "", "text": t} for i, t in zip(lines, val, strict=True)]
    assert read_lines(folder / "val.jsonl") == expected
    counts = meta["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (60, 60, {})
    for split, texts in (("val", val), ("train", [t for t in TEXTS if t not in val])):
        n = counts[split]
        assert n["entries"] == len(texts) and n["characters"] == sum(map(len, texts))
        assert n["tokens"] == sum(len(text.encode()) + 1 for text in texts)
        assert n["blocks"] == len(blocks[split])
        assert n["tokens"] + n["padding"] == n["blocks"] * 64
        assert n["targets"] == int((blocks[split].mask & 1).sum())


def test_concat_holds_the_pieces_of_split(make, texts_file, byte_tokenizer):
    found = []
    for layout in ("split", "concat"):
        _, blocks, _ = make("text", texts_file, layout, val_fraction=0.2)
        found.append(sorted(pieces_of(blocks["train"], byte_tokenizer.pad)))
        rows = len(blocks["train"])
    assert found[0] == found[1] and rows < len(found[0])
    for ids, targets in found[1]:
        assert targets == [0] + [1] * (len(ids) - 1)  # EOT too, where there is one


def test_every_token_but_a_rows_first_is_a_target_in_packed(make, texts_file):
    _, blocks, _ = make("text", texts_file, "packed", val_fraction=0.2)
    whole_rows = blocks["train"].mask[:-1]
    assert (whole_rows == np.array([2] + [1] * 63)).all()


def test_the_classic_layout(make, tmp_path, byte_tokenizer):
    texts = ["Aa. Bb. Cc", "Long. " + "a" * 60 + ".", "no end", "b" * 64 + ".", *TEXTS]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    meta, blocks, _ = make("text", path, "pad", val_fraction=0.2)
    found = {}
    for split in ("train", "val"):
        for row, bits in zip(
            blocks[split].tokens.tolist(), blocks[split].mask.tolist(), strict=True
        ):
            n = row.index(byte_tokenizer.eot)
            assert row[n + 1 :] == [byte_tokenizer.pad] * (63 - n)
            # EOT is after the cut, where the text may continue: it is no target.
            assert bits == [2] + [1] * (n - 1) + ([0, 2] + [0] * (62 - n) if n < 63 else [0])
            found[byte_tokenizer.decode(row[:n])] = split
    assert {"Aa. Bb.", "Long."} < set(found) and not any(t.startswith("no") for t in found)
    assert all(text.endswith(("。", ".")) and len(text.encode()) < 64 for text in found)
    assert meta["counts"]["dropped"]["no sentence end"] == 2
    characters = sum(meta["counts"][split]["characters"] for split in ("train", "val"))
    assert meta["counts"]["left_out"] == sum(map(len, texts)) - characters - len("no end") - 65
    assert "cut off at the end of the block" in table(meta)


def test_duplicates_are_dropped_across_files(make, tmp_path, byte_tokenizer):
    for name, start in (("a", 0), ("b", 20)):
        records = [{"title": name, "text": f"{name}\n\n{text}（）"} for text in TEXTS[start:40]]
        write_lines(tmp_path / f"{name}.jsonl", records * 2)
    meta, blocks, _ = make("text", tmp_path, "split", val_fraction=0.2, clean="wiki")
    found = [
        *joined_texts(blocks["train"], byte_tokenizer),
        *joined_texts(blocks["val"], byte_tokenizer),
    ]
    assert sorted(found) == sorted(TEXTS[:40])
    assert meta["counts"]["dropped"] == {"duplicate": 80} and meta["counts"]["read"] == 120


def test_unclean(make, tmp_path, byte_tokenizer):
    texts = [f"题\n\n文（）{i}。\n" for i in range(40)]
    path = write_lines(tmp_path / "a.jsonl", [{"title": "题", "text": text} for text in texts])
    for clean, expected in [("wiki", "文{}。"), ("none", "题\n\n文（）{}。\n")]:
        _, blocks, _ = make("text", path, "split", clean=clean)
        found = joined_texts(blocks["train"], byte_tokenizer)
        assert set(found) < {expected.format(i) for i in range(40)}


def test_raw_and_cleaned_text_hold_out_the_same_entries(make, tmp_path):
    texts = [f"题{i}\n\n文（）{i}。\n" for i in range(60)]
    records = [{"title": f"题{i}", "text": text, "id": str(i)} for i, text in enumerate(texts)]
    path = write_lines(tmp_path / "a.jsonl", records)
    ids = []
    for clean in ("wiki", "light", "auto", "none"):
        _, _, folder = make("text", path, clean=clean, val_fraction=0.2)
        ids.append([line["id"] for line in read_lines(folder / "val.jsonl")])
    assert ids[0] == ids[1] == ids[2] == ids[3] and 3 < len(ids[0]) < 30


def test_a_larger_vocabulary_takes_wider_ids(make, texts_file, monkeypatch):
    monkeypatch.setattr(pipeline, "token_dtype", lambda n_vocab: np.dtype("<u4"))
    meta, blocks, folder = make("text", texts_file)
    assert meta["dtype"] == "uint32" and blocks["train"].tokens.dtype == np.uint32
    assert (folder / "train.bin").stat().st_size == 4 * (folder / "train.mask").stat().st_size


@pytest.mark.parametrize("layout", ["concat", "packed"])
def test_any_number_of_workers_gives_the_same_blocks(
    make, texts_file, tmp_path, monkeypatch, layout
):
    for module in (containers, records, pipeline):
        monkeypatch.setattr(module, "READ_SIZE", 600)
    made = []
    for workers in (1, 3) if layout == "concat" else (1, 2):
        _, _, folder = make("text", texts_file, layout, workers=workers, val_fraction=0.2)
        made.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert made[0] == made[1]


def test_meta(make, texts_file, byte_tokenizer):
    meta, _, folder = make("text", texts_file, command="python x")
    assert json.loads((folder / "meta.json").read_text(encoding="utf-8")) == meta
    assert meta["tokenizer_hash"] == byte_tokenizer.hash and meta["prompt_format"] == "plain"
    assert meta["sources"][0]["bytes"] == texts_file.stat().st_size
    assert meta["command"] == "python x" and meta["layout"] == "concat"


# -- pairs -----------------------------------------------------------------------------------------

PAIRS = [{"question": f"第{i}问？", "answer": f"答{i}", "id": f"P{i // 3}"} for i in range(120)]


@pytest.mark.parametrize("layout", ["pad", "split", "concat"])
def test_pairs(make, tmp_path, byte_tokenizer, layout):
    path = write_lines(tmp_path / "qa.jsonl", PAIRS)
    meta, blocks, folder = make("qa", path, layout, val_fraction=0.2)
    assert meta["prompt_format"] == "qa"
    for split in ("train", "val"):
        chosen = [pair for pair in PAIRS if is_val(pair["id"], 0.2) == (split == "val")]
        expected = []
        for pair in chosen:
            question, answer = pair["question"].encode(), pair["answer"].encode()
            ids = [*question, byte_tokenizer.answer_mark, *answer, byte_tokenizer.eot]
            expected.append((ids, [0] * (len(question) + 1) + [1] * (len(answer) + 1)))
        found = pieces_of(blocks[split], byte_tokenizer.pad)
        assert sorted(found) == sorted(expected)
        assert layout == "concat" or len(blocks[split]) == len(chosen)
        assert meta["counts"][split]["entries"] == len(chosen) > 5
    lines = read_lines(folder / "val.jsonl")
    assert lines == [{**pair, "id": pair["id"]} for pair in PAIRS if is_val(pair["id"], 0.2)]


def test_pairs_packed(make, tmp_path, byte_tokenizer):
    path = write_lines(tmp_path / "qa.jsonl", PAIRS)
    _, blocks, _ = make("qa", path, "packed", val_fraction=0.2)
    flat, bits = [], []
    for pair in PAIRS:
        if not is_val(pair["id"], 0.2):
            question, answer = pair["question"].encode(), pair["answer"].encode()
            flat += [*question, byte_tokenizer.answer_mark, *answer, byte_tokenizer.eot]
            bits += [0] * (len(question) + 1) + [1] * (len(answer) + 1)
    over = -len(flat) % 64
    tokens = np.array(flat + [byte_tokenizer.pad] * over).reshape(-1, 64)
    mask = np.array(bits + [0] * over).reshape(-1, 64)
    mask[:, 0] = 2
    assert (blocks["train"].tokens == tokens).all() and (blocks["train"].mask == mask).all()


def test_a_question_with_the_answer_mark(make, tmp_path):
    pairs = [{"question": f"## 是{i}##吗？##", "answer": "是##的"} for i in range(30)]
    path = write_lines(tmp_path / "qa.jsonl", pairs)
    _, blocks, _ = make("qa", path, "pad", tokenizer="gpt2")
    tokenizer = load_tokenizer("gpt2")
    answer = tokenizer.encode("是##的")
    assert tokenizer.answer_mark in answer
    for row, bits in zip(
        blocks["train"].tokens.tolist(), blocks["train"].mask.tolist(), strict=True
    ):
        learned = [i for i, bit in enumerate(bits) if bit & 1]
        assert [row[i] for i in learned] == [*answer, tokenizer.eot]
        assert row[learned[0] - 1] == tokenizer.answer_mark
        assert row[: learned[0] - 1].count(tokenizer.answer_mark) >= 2


def test_pairs_that_are_too_long_are_dropped_whole(make, tmp_path, byte_tokenizer):
    fits = {"question": "q" * 30, "answer": "a" * 32}  # with mark and EOT 64
    long = {"question": "q" * 30, "answer": "a" * 33}
    path = write_lines(tmp_path / "qa.jsonl", [*PAIRS, fits, long])
    for layout in LAYOUTS:
        meta, blocks, _ = make("qa", path, layout, val_fraction=0.2)
        assert meta["counts"]["dropped"] == {"too long": 1} and meta["counts"]["kept"] == 121
        tokens = [i for split in blocks.values() for i in split.tokens.flatten().tolist()]
        assert tokens.count(ord("a")) == 32


def test_the_same_pair_about_another_paragraph_is_a_duplicate(make, tmp_path):
    again = [{**PAIRS[0], "id": "other"}, {**PAIRS[1], "answer": "别"}]
    meta, _, _ = make("qa", write_lines(tmp_path / "qa.jsonl", [*PAIRS, *again]))
    assert meta["counts"]["dropped"] == {"duplicate": 1} and meta["counts"]["kept"] == 121


# -- how much is held out --------------------------------------------------------------------------


def test_a_small_input_still_has_val(make, tmp_path):
    for n in (2, 3, 5):
        path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:n]])
        meta, blocks, _ = make("text", path)
        assert meta["counts"]["val"]["entries"] == 1 and len(blocks["val"]) >= 1


def test_the_fraction_by_itself(tmp_path, monkeypatch):
    text = "天下大势分久必合" * 50
    path = write_lines(tmp_path / "a.jsonl", [{"text": f"{i}{text}"} for i in range(9000)])

    # 3.6 million characters: 120,000 of them are 3.3 %.
    def fraction(path, format="text"):
        return automatic_fraction([path], PrepareOptions(path, "", FORMATS[format]))

    assert fraction(path) == pytest.approx(1 / 30, rel=0.02)
    small = write_lines(tmp_path / "b.jsonl", [{"text": f"{i}{text}"} for i in range(300)])
    assert fraction(small) == 0.1
    pairs = write_lines(
        tmp_path / "c.jsonl", [{"question": f"{i}{text}", "answer": "a"} for i in range(90)]
    )
    monkeypatch.setattr(DialogueEncoder, "held_out", 3)
    assert fraction(pairs, "qa") == pytest.approx(3 / 90)


@pytest.mark.parametrize(
    ("records", "keywords", "says"),
    [
        (
            [{"text": "天。"}],
            {},
            "1 kept: train and val need two at least; give more text",
        ),
        ([{"text": t} for t in TEXTS], {"val_fraction": 1e-9}, "none of them is in val.*larger"),
        (
            [{"text": t} for t in TEXTS],
            {"val_fraction": 1 - 1e-9},
            "none of them is in train.*sm",
        ),
        (
            [{"text": "（）"}, {"text": "无"}],
            {"layout": "pad"},
            "nothing to train on: 2 entries read",
        ),
        ([], {}, "nothing to train on: 0 entries read"),
        ([{"text": "天。"}], {"block_size": 8}, "block_size=8: expected at least 16"),
        (
            [{"text": "天。"}],
            {"workers": -1, "val_fraction": 1.5},
            "workers=-1.*\nval_fraction=1.5",
        ),
        ([{"text": "天。"}], {"tokenizer": "none"}, "tokenizer=none: there is no such"),
    ],
)
def test_nothing_to_make_says_what_to_do(make, tmp_path, records, keywords, says):
    path = write_lines(tmp_path / "a.jsonl", records)
    with pytest.raises(UserError, match=says):
        make("text", path, **keywords)
    assert list(tmp_path.iterdir()) == [path]


# -- bad records, interruptions --------------------------------------------------------------------


def test_a_bad_record_stops_the_run_and_leaves_the_old_data(make, texts_file, tmp_path):
    _, _, folder = make("text", texts_file)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    bad = tmp_path / "bad.jsonl"
    bad.write_text(texts_file.read_text(encoding="utf-8") + '{"text": 7}\n', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"bad\.jsonl, line 61: field `text`: expected text, found int"
    ):
        make("text", bad)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "processed", "texts.jsonl"]


def test_bad_records_are_copied_when_skipped(make, texts_file, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 7}\n{"text":\n{"text": "天下。"}\n', encoding="utf-8")
    (tmp_path / "z.txt").write_bytes(b"\0\1\2")
    meta, _, folder = make("text", [bad, texts_file, tmp_path / "z.txt"], skip_bad=True)
    assert meta["counts"]["dropped"] == {"bad": 3} and meta["counts"]["read"] == 64
    rejects = read_lines(folder / "rejects.jsonl")
    assert [(r["source"], r["line"]) for r in rejects] == [
        (bad.as_posix(), 1),
        (bad.as_posix(), 2),
        ((tmp_path / "z.txt").as_posix(), 1),
    ]
    assert rejects[0]["text"] == '{"text": 7}' and "no JSON" in rejects[1]["reason"]
    # The next run, without bad records, has no such file.
    make("text", texts_file, skip_bad=True)
    assert not (folder / "rejects.jsonl").exists()


def test_what_is_lost_passed_over_or_read_otherwise_is_told(make, texts_file, tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    items = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS[:30]]
    items[5] = items[5][:-2]
    (folder / "list.json").write_text(f"[{', '.join(items)}]", encoding="utf-8")
    (folder / "big5.txt").write_text("天下大勢，分久必合。\n" * 9, encoding="big5")
    (folder / "zero.txt").write_bytes("周末七国\0分争。\n".encode())
    (folder / "README.md").write_text("about")
    with pytest.raises(UserError, match=r"list\.json, item 6: no JSON"):
        make("text", folder)
    (folder / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n')[:-9])
    with pytest.raises(UserError, match=r"torn\.jsonl\.gz: cannot be unpacked"):
        make("text", folder)
    meta, _, made = make("text", folder, skip_bad=True)
    assert meta["counts"]["kept"] == 29 + 2 and meta["counts"]["dropped"] == {"bad": 2}
    told = table(meta)
    for says in (
        "big5.txt: read as Big5",
        "zero.txt: 1 NUL byte left out, the first in line 1",
        f"list.json: 1 bad record of it left out, {len(items[5].encode()) + 2} bytes",
        "README.md (metadata)",
    ):
        assert says in told, told
    reject, torn = read_lines(made / "rejects.jsonl")
    assert torn["reason"].startswith("cannot be unpacked") and torn["unit"] == "file"
    assert (reject["line"], reject["unit"]) == (6, "item")


def test_texts_of_other_fields_and_line_breaks(make, tmp_path, byte_tokenizer):
    records = [{"TITLE": "题", "Content": f"诗{i}\n  春江潮水，\n海上明月。"} for i in range(30)]
    path = write_lines(tmp_path / "a.jsonl", records)
    _, blocks, folder = make("text", path, "split", val_fraction=0.2)
    texts = joined_texts(blocks["train"], byte_tokenizer)
    texts += joined_texts(blocks["val"], byte_tokenizer)
    assert sorted(texts) == sorted(record["Content"] for record in records)
    assert read_lines(folder / "val.jsonl")[0]["title"] == "题"
    script = "data/prepare.py"
    words = [f"--input={path}", f"--dataset={folder}", "--workers=1", "--text_field=title"]
    code, _, errors = run_here(script, *words, "--skip_bad=true")
    assert code == 2 and "all have the same content" in errors
    code, _, errors = run_here(script, *words[:3], "--text_field=other")
    assert code == 2 and "`other` is missing" in errors


def test_cleaning_is_shown(tmp_path):
    texts = [f"题{i}\n\n题{i}（）是第{i}个。" for i in range(30)]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    words = [f"--input={path}", f"--dataset={tmp_path / 'made'}", "--workers=1"]
    code, printed, _ = run_here("data/prepare.py", *words, "--show_cleaning=5")
    assert code == 0 and printed.count("empty （）: ") == 2 and printed.count("title line: ") == 3
    assert re.search(r'empty （）  +30  +60  ".*（）.*" → ', printed)
    for old, new in (("true", "wiki"), ("false", "none")):
        made = []
        for name in (old, new):
            assert run_here("data/prepare.py", *words, f"--clean={name}")[0] == 0
            made.append((tmp_path / "made/train.bin").read_bytes())
        assert made[0] == made[1]


def test_a_file_with_many_tokens_a_character_is_named(make, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"the story of {i}\n" * 200)
    (tmp_path / "odd.txt").write_text("天下大势\n" * 200, encoding="utf-8")
    meta, _, _ = make("text", tmp_path, val_fraction=0.5)
    (note,) = [note for note in meta["notes"] if "tokens a character" in note]
    assert "odd.txt: 2.60 tokens a character, 1.00 in the other files" in note


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([{"question": f"{i}", "answer": "a", "id": 1} for i in range(9)], "have the same `id`"),
        ([{"question": "q", "answer": "a"}] * 9, "9 entries read, 1 kept.*have the same content"),
        ([{"question": "q", "answer": "a"}], "two at least; give more text"),
    ],
)
def test_why_a_split_is_empty(make, tmp_path, pairs, says):
    with pytest.raises(UserError, match=says):
        make("qa", write_lines(tmp_path / "qa.jsonl", pairs))


def test_home(make, texts_file, monkeypatch):
    monkeypatch.setenv("HOME", str(texts_file.parent))
    monkeypatch.setenv("USERPROFILE", str(texts_file.parent))
    assert make("text", "~/texts.jsonl")[0]["counts"]["kept"] == 60


def half_written(folder):
    """What a running or a killed preparation has beside the folder."""
    return list(folder.parent.glob(".processed.*.partial"))


def long_run(root, tmp_path, folder):
    """A prepare.py that takes seconds, in its own session, once it has begun to write."""
    many = tmp_path / "many.txt"
    many.write_text("".join(f"第{i}天，天下大势。\n" for i in range(400_000)), encoding="utf-8")
    words = [sys.executable, root / "data/prepare.py", f"--input={many}", f"--dataset={folder}"]
    process = subprocess.Popen(
        [*map(str, words), "--workers=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not half_written(folder) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    assert process.poll() is None, process.stderr.read().decode()
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_ctrl_c_and_kill_leave_the_old_data(make, texts_file, tmp_path, root):
    _, _, folder = make("text", texts_file)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    process = long_run(root, tmp_path, folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors, errors.decode()
    assert not half_written(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

    process = long_run(root, tmp_path, folder)
    process.kill()
    process.communicate(timeout=60)  # ends only when the workers, who hold its stderr, are gone
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    make("text", texts_file)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert not half_written(folder)


# -- as run ----------------------------------------------------------------------------------------


def test_the_scripts(texts_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths are relative to where the user is
    for path in (texts_file, write_lines(tmp_path / "qa.jsonl", PAIRS)):
        is_qa = path.name == "qa.jsonl"
        script = "data/prepare_sft.py" if is_qa else "data/prepare.py"
        words = f"--input={path.name}", "--dataset=made", "--block_size=64"
        code, printed, errors = run_here(script, *words)
        assert code == 0, errors
        assert "read 120 = kept 120 + dropped 0" if is_qa else "read 60 = kept 60" in printed
        assert "padding" in printed and "train" in printed
        assert "B/s" in errors  # the progress bar
        meta = json.loads((tmp_path / "made/meta.json").read_text(encoding="utf-8"))
        assert meta["prompt_format"] == ("qa" if is_qa else "plain")
        assert meta["command"].startswith(f"python {script} --input={path.name}")


def test_a_bad_record_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "谁？"}\n', encoding="utf-8")
    for script, says in [
        ("data/prepare.py", "`text` is missing"),
        ("data/prepare_sft.py", "`answer`"),
    ]:
        words = f"--input={tmp_path}", f"--dataset={tmp_path / 'made'}"
        code, _, errors = run_here(script, *words)
        lines = errors.replace("\r", "\n").strip().splitlines()
        assert code == 2
        assert says in lines[-1] and "a.jsonl, line 1: " in lines[-1]


def test_real_text(shared_data, tmp_path):
    shape = dict(layout="split", block_size=256)
    options = PrepareOptions(
        shared_data / "wiki", tmp_path / "made", FORMATS["text"], workers=1, **shape
    )
    meta = prepare(options)
    counts = meta["counts"]
    assert counts["read"] == counts["kept"] == 848
    tokenizer = load_tokenizer("zh")
    texts = [entry.text for entry in read_entries(shared_data / "wiki")]
    found = {
        split: joined_texts(Blocks(tmp_path / "made", split, tokenizer, 256), tokenizer)
        for split in ("train", "val")
    }
    assert found["val"] == [text for text in texts if is_val(text, 0.1)]
    assert sorted(found["val"] + found["train"]) == sorted(texts)
    assert 60 < counts["val"]["entries"] < 110


# -- duplicates ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=12), max_size=20))
def test_seen_is_a_set(batches):
    seen, known = SeenHashes(), set()
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(value not in known)
            known.add(value)
        assert seen.first_time(np.array(batch, np.uint64)).tolist() == expected


def test_seen_holds_eight_bytes_for_each():
    seen = SeenHashes()
    random = np.random.default_rng(0)
    for _ in range(500):
        seen.first_time(random.integers(0, 2**64, 200, dtype=np.uint64))
    assert sum(level.nbytes for level in seen._levels) == 8 * 500 * 200
    assert len(seen._levels) < 12
