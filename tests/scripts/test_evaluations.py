"""evaluations-perplexity.py and evaluations-RougeL.py, run as a user runs them."""

import json
import math
import re

import pytest
from tiny_run import pack, run_here, save_run, save_scripted_run, write_jsonl

from minigpt.evaluation.perplexity import answer_passages, text_bits, text_passages

KEPT_TEXTS = [
    {"id": "a", "title": "", "text": "长江很长。"},
    {"id": "b", "title": "", "text": "河。"},
]
KEPT_PAIRS = [
    {"id": "v1", "question": "问？", "answer": "黄河"},
    {"id": None, "question": "谁？", "answer": "孔子。"},
]


@pytest.fixture
def dataset(tmp_path, byte_tokenizer, write_blocks):
    """dataset("qa" or "plain"): a prepared folder; its pair is 几？黄河, with EOT 7 targets."""

    def make(prompt_format):
        if prompt_format == "qa":
            ids = [*"几？".encode(), byte_tokenizer.answer_mark, *"黄河".encode(), 256]
            pieces, kept = [(ids, 7)], KEPT_PAIRS
        else:
            pieces, kept = [([*"黄河。".encode()], 1)], KEPT_TEXTS
        train = pack(byte_tokenizer, [pieces])
        val = pack(byte_tokenizer, [pieces, pieces])
        folder = tmp_path / "data"
        write_blocks(folder, byte_tokenizer, train, val, prompt_format=prompt_format)
        write_jsonl(folder / "val.jsonl", kept)
        return folder

    return make


@pytest.fixture
def random_run(tmp_path, byte_tokenizer, tiny_model):
    """random_run(format, dataset): the folder of a run with random weights, and its model."""

    def make(prompt_format="plain", dataset="nowhere"):
        model = tiny_model(padded_vocab_size=320, block_size=32)
        return save_run(tmp_path / "run", model, byte_tokenizer, prompt_format, dataset), model

    return make


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def perplexity(*words):
    return run_here("evaluations-perplexity.py", *words)


def rouge(*words):
    return run_here("evaluations-RougeL.py", *words)


PROGRESS = re.compile(r"(blocks|text|answers): [\d,]+ of [\d,]+, \d+s( left)?(, \d+s left)?\n")


def without_progress(err):
    """stderr without the lines that say how far a script is; there is one at least."""
    rest, count = PROGRESS.subn("", err)
    assert count
    return rest


# -- perplexity ------------------------------------------------------------------------------------


def test_perplexity_of_a_plain_run_on_its_own_dataset(dataset, random_run, byte_tokenizer):
    data = dataset("plain")
    run, model = random_run("plain", data)
    code, out, err = perplexity(f"--out_dir={run}", "--device=cpu")
    assert (code, without_progress(err)) == (0, "")
    figures = read(run / "perplexity.json")
    assert (figures["step"], figures["tokenizer"]) == (7, byte_tokenizer.name)
    assert (figures["tokens"]["blocks"], figures["tokens"]["targets"]) == (2, 2 * 8)
    assert figures["tokens"]["perplexity"] == pytest.approx(math.exp(figures["tokens"]["loss"]))
    texts = [record["text"] for record in KEPT_TEXTS]
    expected = text_bits(model, text_passages(byte_tokenizer, texts), 261)
    assert figures["text"] == dict(name=str(data / "val.jsonl")) | expected
    for shown in (f"{figures['tokens']['perplexity']:.3f}", f"{expected['bits_per_char']:.4f}"):
        assert shown in out


def test_neither_the_batch_nor_another_run_changes_the_figures(dataset, random_run):
    run, _ = random_run("plain", dataset("plain"))
    found = []
    for batch_size in (1, 1, 32):
        assert perplexity(f"--out_dir={run}", f"--batch_size={batch_size}")[0] == 0
        figures = read(run / "perplexity.json")
        found.append([figures["tokens"]["loss"], figures["text"]["bits"]])
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_perplexity_of_the_train_split(dataset, random_run):
    run, _ = random_run("plain", dataset("plain"))
    output = run / "figures" / "train.json"
    words = (f"--out_dir={run}", "--split=train", f"--output={output}")
    assert perplexity(*words)[0] == 0
    figures = read(output)
    assert figures["tokens"]["targets"] == 8 and "text" not in figures


def test_perplexity_of_answers(tmp_path, dataset, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", "qa", dataset("qa"))
    assert perplexity(f"--out_dir={run}")[0] == 0
    figures = read(run / "perplexity.json")
    # The run knows this answer by heart, its EOT too: targets are the answer and EOT alone.
    assert figures["tokens"]["targets"] == 2 * 7
    assert figures["tokens"]["perplexity"] == pytest.approx(1, abs=1e-4)
    assert figures["text"]["characters"] == 2 + 3


def test_bits_of_answers_given_their_questions(dataset, random_run, byte_tokenizer):
    run, model = random_run("qa", dataset("qa"))
    assert perplexity(f"--out_dir={run}")[0] == 0
    pairs = [(record["question"], record["answer"]) for record in KEPT_PAIRS]
    expected = text_bits(model, answer_passages(byte_tokenizer, pairs), 261)
    assert read(run / "perplexity.json")["text"]["bits"] == pytest.approx(expected["bits"])


def test_bits_per_character_of_any_text(tmp_path, random_run, byte_tokenizer):
    run, model = random_run()
    text = "黄河是中国第二长河。\n" * 20
    (tmp_path / "novel.txt").write_text(text, encoding="utf-8")
    code, _, err = perplexity(f"--out_dir={run}", f"--text={tmp_path / 'novel.txt'}")
    assert (code, without_progress(err)) == (0, "")
    figures = read(run / "perplexity.json")
    assert "tokens" not in figures
    assert (figures["text"]["texts"], figures["text"]["characters"]) == (1, len(text))
    expected = text_bits(model, text_passages(byte_tokenizer, [text]), 261)
    assert figures["text"]["bits"] == pytest.approx(expected["bits"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(tokenizer="other", tokenizer_hash="0"), "its tokens are other's"),
        (dict(block_size=64), "its blocks of 64 tokens are longer"),
    ],
)
def test_what_another_run_was_trained_on_still_gives_bits(dataset, random_run, change, reason):
    data = dataset("plain")
    meta = read(data / "meta.json") | change
    (data / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    run, _ = random_run()
    words = (f"--out_dir={run}", f"--dataset={data}")
    code, out, _ = perplexity(*words)
    assert code == 0 and "no perplexity, because" in out and reason in out
    figures = read(run / "perplexity.json")
    assert "tokens" not in figures and figures["text"]["characters"] == 7
    code, _, err = perplexity(*words, "--split=train")
    assert code == 2 and "text of the train split is not kept" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out_dir=nowhere"], "nowhere: no trained run here"),
        (["--batch_size=0"], "batch_size=0: expected at least 1"),
        (["--text=nowhere.txt"], "nowhere.txt: no such file"),
        (["--text=a.txt", "--dataset=b"], "expected one of them"),
        (["--dataset=nowhere"], "nowhere/meta.json: no prepared data here"),
        (["--split=test"], "--split: split=test: expected val | train"),
        (["--output={run}/config.json/x"], "config.json/x: cannot be written"),
    ],
)
def test_mistakes_in_perplexity(random_run, words, message):
    run, _ = random_run()
    words = [word.format(run=run) for word in words]
    code, _, err = perplexity(f"--out_dir={run}", *words)
    assert code == 2 and message in err.replace("\\", "/") and err.count("\n") == 1


# -- Rouge-L ---------------------------------------------------------------------------------------


def test_rouge_of_a_run_that_knows_one_answer(tmp_path, dataset, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", "qa", dataset("qa"))
    pairs = [{"id": "t1", "question": "几？", "answer": "黄河"}, *KEPT_PAIRS]
    qa = write_jsonl(tmp_path / "qa.jsonl", [*pairs, {"question": "新？", "answer": "abc"}])
    code, out, err = rouge(f"--out_dir={run}", f"--input={qa}")
    assert (code, without_progress(err)) == (0, "")
    figures = read(run / "rouge.json")
    lines = (run / "rouge.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["question"] for row in rows] == ["几？", "问？", "谁？", "新？"]
    assert {row["prediction"] for row in rows} == {"黄河"}
    assert [row["exact"] for row in rows] == [True, True, False, False]
    whole = figures["all"]
    assert (whole["count"], whole["exact_match"]) == (4, 0.5)
    assert whole["rouge_l_chars"]["mean"] == pytest.approx(0.5)
    assert whole["length_ratio"] == pytest.approx(8 / (2 + 2 + 3 + 3))
    assert figures["seen in training"]["rouge_l_words"]["mean"] == pytest.approx(1)
    assert figures["held out"]["count"] == 2
    assert figures["held out"]["rouge_l_chars"]["mean"] == pytest.approx(0.5)
    assert figures["others"]["rouge_l_chars"]["mean"] == 0
    for row in ("all", "seen in training", "held out", "others"):
        assert f"\n{row}  " in out
    assert "1 1.000 (words 1.000)  几？" in out and "4 0.000 (words 0.000)  新？" in out


def test_what_is_shown_of_an_answer_stays_in_its_line(tmp_path, dataset, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", "qa", dataset("qa"))
    pairs = [
        {"question": "几？", "answer": "黄\n\n河" * 100},
        {"question": "新？", "answer": "黄河"},
    ]
    qa = write_jsonl(tmp_path / "qa.jsonl", pairs)
    code, out, err = rouge(f"--out_dir={run}", f"--input={qa}")
    assert (code, without_progress(err)) == (0, "")
    (line,) = [line for line in out.splitlines() if "reference" in line and "…" in line]
    assert line.strip() == "reference   " + " ".join(["黄"] + ["河黄"] * 66 + ["河"])[:200] + "…"


def rouge_lines(out):
    """The first line of each answer that was printed."""
    return [line for line in out.splitlines() if " (words " in line]


def test_few_answers_are_all_printed_and_of_many_the_ends(tmp_path, dataset, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", "qa", dataset("qa"))
    pairs = [{"question": f"{i}？", "answer": "黄河" if i == 7 else "甲"} for i in range(21)]
    for count, names in ((20, [str(i) for i in range(1, 21)]), (21, ["best", "worst"])):
        qa = write_jsonl(tmp_path / "qa.jsonl", pairs[:count])
        _, out, _ = rouge(f"--out_dir={run}", f"--input={qa}", "--show=1")
        assert [line.split()[0] for line in rouge_lines(out)] == names
        assert "1.000 (words 1.000)  7？" in out
    assert rouge_lines(rouge(f"--out_dir={run}", f"--input={qa}", "--show=0")[1]) == []


@pytest.mark.parametrize("prompt_format", ["plain", "qa", "chat"])
def test_one_s_own_prompts_and_references(tmp_path, byte_tokenizer, random_run, prompt_format):
    run, _ = random_run(prompt_format)
    prompt = "黄河（）很长，"  # neither cut at a sentence nor cleaned
    asked = [{"id": 5, "prompt": prompt, "reference": " 流过九省。\n"}]
    given = write_jsonl(tmp_path / "three.jsonl", asked)
    code, out, _ = rouge(f"--out_dir={run}", f"--input={given}", "--max_new_tokens=3")
    row = read(run / "rouge.jsonl")
    assert code == 0 and (row["id"], row["question"]) == ("5", prompt)
    assert row["reference"] == "流过九省。" and f"  {prompt}\n" in out
    for field in ("prompt", "reference"):
        wrong = write_jsonl(tmp_path / "wrong.jsonl", [{**asked[0], field: " "}])
        code, _, err = rouge(f"--out_dir={run}", f"--input={wrong}")
        assert code == 2 and f"wrong.jsonl, line 1: field `{field}`: expected a text" in err


def test_an_empty_answer_is_explained(tmp_path, dataset, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "", "qa", dataset("qa"))
    qa = write_jsonl(tmp_path / "qa.jsonl", KEPT_PAIRS)
    code, out, _ = rouge(f"--out_dir={run}", f"--input={qa}")
    assert code == 0 and "2 of 2 answers are empty: the model ended at once" in out
    assert "train longer" in out and "troubleshooting.md" in out
    out = rouge(f"--out_dir={run}", f"--input={qa}", "--max_new_tokens=0")[1]
    assert "ended at once" not in out


def test_rouge_of_a_sample_is_seeded_and_batches_change_nothing(tmp_path, random_run):
    run, _ = random_run("qa")
    pairs = [{"question": f"{i}？", "answer": "黄河很长，流过很多地方"} for i in range(12)]
    qa = write_jsonl(tmp_path / "qa.jsonl", pairs)
    found = []
    for batch_size in (1, 4):
        output = tmp_path / f"{batch_size}.jsonl"
        words = [f"--input={qa}", "--limit=5", "--temperature=1", "--max_new_tokens=6"]
        words += [f"--output={output}", f"--batch_size={batch_size}"]
        code, out, _ = rouge(f"--out_dir={run}", *words)
        assert code == 0 and "cannot be distinguished" in out and "nowhere" in out
        figures = read(output.with_suffix(".json"))
        assert set(figures) & {"seen in training", "held out", "others"} == set()
        found.append((output.read_text(encoding="utf-8"), figures["all"]))
    assert found[0] == found[1] and found[0][1]["count"] == 5


def test_rouge_of_empty_predictions(tmp_path, random_run):
    run, _ = random_run("qa")
    qa = write_jsonl(tmp_path / "qa.jsonl", [{"question": "谁？", "answer": "他"}])
    assert rouge(f"--out_dir={run}", f"--input={qa}", "--max_new_tokens=0")[0] == 0
    figures = read(run / "rouge.json")["all"]
    assert figures["rouge_l_words"] == dict(mean=0, low=0, high=0)
    assert figures["length_ratio"] == 0


def test_rouge_of_a_pretrained_run(tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", "plain")
    entries = [
        {"title": "长江", "text": "长江\n\n长江很长。黄河"},
        {"title": "河", "text": "河\n\n只有一句。"},
    ]
    wiki = write_jsonl(tmp_path / "wiki.jsonl", entries)
    code, out, _ = rouge(f"--out_dir={run}", f"--input={wiki}")
    assert code == 0 and "1 entries have nothing after their first sentence" in out
    row = read(run / "rouge.jsonl")
    assert row["question"] == "长江很长。"
    assert row["reference"] == row["prediction"] == "黄河"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no input"),
        (["--input=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--input={qa}"], "qa.jsonl, line 2: field `answer` is missing"),
        (["--input={qa}", "--limit=0"], "limit=0: expected at least 1"),
        (["--input={qa}", "--seed=-1"], "seed=-1: expected at least 0"),
        (["--input={qa}", "--output=a.json"], "expected a name that ends in .jsonl"),
        (["--input={good}", "--top_p=0"], "top_p=0.0: expected above 0"),
    ],
)
def test_mistakes_in_rouge(tmp_path, random_run, words, message):
    run, _ = random_run("qa")
    good = {"question": "谁？", "answer": "他"}
    names = dict(
        qa=write_jsonl(tmp_path / "qa.jsonl", [good, {"question": "谁？"}]),
        good=write_jsonl(tmp_path / "good.jsonl", [good]),
    )
    words = [word.format(**names) for word in words]
    code, _, err = rouge(f"--out_dir={run}", *words)
    assert code == 2 and message in err and err.count("\n") == 1
