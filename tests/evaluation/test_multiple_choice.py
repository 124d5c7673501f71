"""Endings: a multiple-choice task of any text, scored here and by lm-evaluation-harness."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here, save_run, write_jsonl

from minigpt.common.errors import UserError
from minigpt.evaluation.examples import Example
from minigpt.evaluation.multiple_choice import (
    N_ENDINGS,
    Item,
    ending_logprobs,
    fitting,
    make_items,
    score,
    write_task,
)
from minigpt.interop import hf_export
from minigpt.models import checkpoint
from minigpt.tokenizer.tokenizer import SPECIAL_NAMES, save_tokenizer

WORDS = "山水云雨风雪花鸟鱼虫草木春夏秋冬东西南北"


def examples_of(endings):
    """An Example for each ending: its context names it, and a third sentence follows."""
    return [Example(str(i), f"第{i}句。", f"{text}。后文。") for i, text in enumerate(endings)]


ENDINGS = st.lists(
    st.text(WORDS, min_size=1, max_size=12), min_size=N_ENDINGS, max_size=40, unique=True
)


@settings(max_examples=40)
@given(ENDINGS, st.integers(0, 99))
def test_every_item_has_its_own_ending_and_three_others(endings, seed):
    items = make_items(examples_of(endings), seed)
    assert len(items) == len(endings)
    for i, item in enumerate(items):
        assert item.context == f"第{i}句。"
        assert item.endings[item.label] == endings[i] + "。"
        assert len(set(item.endings)) == N_ENDINGS
        assert {ending[:-1] for ending in item.endings} <= set(endings)
    assert items == make_items(examples_of(endings), seed)


def test_labels_are_spread_and_another_seed_draws_others():
    endings = [a + b for a in WORDS for b in WORDS]
    items = make_items(examples_of(endings), 0)
    counts = np.bincount([item.label for item in items], minlength=N_ENDINGS)
    assert counts.min() > len(items) / N_ENDINGS / 2
    others = make_items(examples_of(endings), 1)
    assert sum(set(a.endings) != set(b.endings) for a, b in zip(items, others, strict=True)) > 300


def test_wrong_endings_are_of_about_the_same_length():
    """100 endings of 1 to 100 characters: the nearest 24 are at most 24 away, at the ends too."""
    items = make_items(examples_of(["山" * n for n in range(1, 101)]), 0)
    for n, item in enumerate(items, start=1):
        far = [abs(len(ending) - 1 - n) for ending in item.endings]
        assert max(far) <= (12 if 12 < n < 88 else 24)


def test_a_repeated_ending_is_scored_once():
    texts = ["山高。", "水长。", "云起。", "雨落。", "山高。"]
    items = make_items([Example(None, f"第{i}句。", text) for i, text in enumerate(texts)], 0)
    assert [item.context for item in items] == [f"第{i}句。" for i in range(4)]


def test_limit_draws_some_in_their_order():
    whole = make_items(examples_of(list(WORDS)), 3)
    some = make_items(examples_of(list(WORDS)), 3, limit=5)
    places = [whole.index(item) for item in some]
    assert len(some) == 5 and places == sorted(places)
    assert make_items(examples_of(list(WORDS)), 3, limit=99) == whole


def test_too_few_endings_are_said():
    with pytest.raises(UserError, match=r"3 entries .* at least 4"):
        make_items(examples_of("山水云"), 0)


def test_what_is_longer_than_a_block_is_left_out(byte_tokenizer):
    item = Item("山。", ["水。", "云云。", "雨。", "风。"], 0)  # 6 bytes, and 9 of the longest
    assert fitting([item], byte_tokenizer, 15) == [item]
    assert fitting([item], byte_tokenizer, 14) == []


@pytest.fixture(scope="module")
def full_tokenizer(tmp_path_factory):
    """A tokenizer of 320 ids, so that a model has no row without one: other programs spread
    probability over such rows too. Beside the bytes: the characters of WORDS."""
    ranks = [bytes([byte]) for byte in range(256)]
    for sign in WORDS:
        ranks += [part for part in (sign.encode()[:2], sign.encode()) if part not in ranks]
    ranks += [f"{letter}{letter}".encode() for letter in "abcdefghijklmnopqrstuvwxyz"]
    ranks = {part: rank for rank, part in enumerate(ranks[:315])}
    special = {name: 315 + i for i, name in enumerate(SPECIAL_NAMES)}
    path = tmp_path_factory.mktemp("tokenizer") / "full.tiktoken"
    return save_tokenizer(path, ranks, "gpt-2", special, {"trained_on": "nothing"})


@pytest.fixture
def run_folder(tmp_path, full_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=128)
    return save_run(tmp_path / "run", model, full_tokenizer)


def test_the_harness_finds_what_we_find(tmp_path, monkeypatch, run_folder, full_tokenizer):
    """From write_task()'s files and the exported run, by lm_eval's own model and tokenizer."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")  # its model "hf" loads it
    from lm_eval.tasks import TaskManager

    endings = [a * n + b for n, (a, b) in enumerate(pairwise(WORDS), start=1)]
    items = make_items(examples_of(endings), 5)
    task = write_task(tmp_path / "task", "endings", items)
    assert task == tmp_path / "task" / "endings.yaml"
    trained = checkpoint.load(run_folder)
    items = fitting(items, trained.tokenizer, 128)
    assert len(items) == len(endings)
    ours = score(trained, items)
    hf_export.write_hf(tmp_path / "exported", trained, "float32")
    found = lm_eval.simple_evaluate(
        "hf",
        model_args=dict(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32"),
        tasks=["endings"],
        task_manager=TaskManager(include_path=str(task.parent), include_defaults=False),
        bootstrap_iters=2,
        batch_size=4,
        log_samples=True,
    )
    for item, sample in zip(items, found["samples"]["endings"], strict=True):
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert theirs == pytest.approx(list(ending_logprobs(trained, item)), abs=1e-3)
    found = found["results"]["endings"]
    for name in ("acc", "acc_norm"):
        assert found[f"{name},none"] == pytest.approx(ours[name])
    assert full_tokenizer.n_vocab == trained.model.config.padded_vocab_size
    assert found["sample_len"] == ours["items"] == len(items)
    assert 0 < ours["acc"] < 1 and ours["acc"] != ours["acc_norm"]
    assert found["acc_stderr,none"] == pytest.approx(ours["acc_stderr"])


# -- the script ------------------------------------------------------------------------------------


def endings(*words):
    return run_here("tools/evaluations-endings.py", *words)


def test_the_script_writes_task_and_figures(tmp_path, run_folder):
    texts = [
        {"id": c, "title": "", "text": f"{c}有名。{c}很高{'高' * i}。"}
        for i, c in enumerate("山水云雨风")
    ]
    texts.append({"id": "long", "title": "", "text": f"长文。{'长' * 60}。"})
    source = write_jsonl(tmp_path / "val.jsonl", texts)
    folder = tmp_path / "my_task"
    code, out, wrong = endings(
        f"--out_dir={run_folder}", f"--input={source}", f"--task={folder}", "--seed=2"
    )
    assert code == 0, wrong
    items = [
        json.loads(line) for line in (folder / "my_task.jsonl").read_text("utf-8").splitlines()
    ]
    assert [item["context"][0] for item in items] and "longer than a block of 128" in out
    assert all(item["context"] != "长文。" for item in items)
    figures = json.loads((run_folder / "endings.json").read_text(encoding="utf-8"))
    assert figures["items"] == len(items) and 0 <= figures["acc_norm"] <= 1
    assert "--tasks=my_task" in out and f"--include_path={folder}" in out


@pytest.mark.parametrize(
    "record, flag, says",
    [
        ({"question": "谁？", "answer": "我。"}, "--seed=1", "field `text` is missing"),
        ({"id": "1", "text": "山高。水长。"}, "--seed=1", "at least 4: give more text"),
        ({"id": "1", "text": "山高。水长。"}, "--limit=0", "limit=0: expected at least 1"),
        ({"id": "1", "text": "山高。水长。"}, "--seed=-1", "seed=-1: expected at least 0"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, run_folder, record, flag, says):
    source = write_jsonl(tmp_path / "val.jsonl", [record])
    code, _, wrong = endings(
        f"--out_dir={run_folder}", f"--input={source}", f"--task={tmp_path / 'task'}", flag
    )
    assert code == 2 and says in wrong and wrong.count("\n") == 1
    assert not (tmp_path / "task").exists()
