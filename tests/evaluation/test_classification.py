"""Classification: questions that fit, in any wording, labels read in four ways, figures held
against scikit-learn's, and the two scripts as a user runs them."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here, save_run, save_scripted_run

from minigpt.common.errors import UserError
from minigpt.evaluation.classification import (
    READINGS,
    Task,
    answer_room,
    draw_shots,
    find_label,
    fitted_question,
    label_logprobs,
    predict,
    read_labelled,
    read_task,
    scores,
    wilson,
    write_task,
)
from minigpt.evaluation.labelled import Labelled
from minigpt.models import checkpoint
from minigpt.plotting.confusion import confusion_figure

TASK = Task(("art", "sport"), "Kind:", 20)


def labelled(*pairs):
    return [Labelled(str(i), text, label) for i, (text, label) in enumerate(pairs)]


# -- tasks -----------------------------------------------------------------------------------------


def test_a_task_on_the_disk(tmp_path):
    train = labelled(("one two three four five six", "art"), ("seven", "sport"))
    test = labelled(("eight", "art"))
    assert write_task(tmp_path / "t", TASK, train, test, 1, dict(seed=3)) == 2
    assert read_task(tmp_path / "t") == TASK
    assert read_labelled(tmp_path / "t" / "train.jsonl", TASK.labels) == train
    assert read_labelled(tmp_path / "t" / "test.jsonl", TASK.labels) == test
    lines = (tmp_path / "t" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    first = dict(id="0", question="one two three four\nKind:", answer="art")
    assert [json.loads(line) for line in lines] == [
        first,
        dict(id="1", question="seven\nKind:", answer="sport"),
    ]
    assert write_task(tmp_path / "t", TASK, train, test, 5, {}) == 3


def test_a_question_shows_the_beginning_of_a_text():
    assert TASK.question("one two three four five six") == "one two three four\nKind:"


def test_an_answer_follows_a_space_only_in_text_with_spaces():
    assert TASK.answer("art", "plain") == " art" and TASK.answer("art", "qa") == "art"
    assert TASK._replace(ask="类别：").answer("艺术", "plain") == "艺术"


WORDED = TASK._replace(wording="Example {number}\n{text}\nKind: {label}.")


def test_one_s_own_wording_numbers_the_examples(byte_tokenizer):
    task = WORDED._replace(instruction="Sort: {labels}.")
    shots = labelled(("aa", "art"), ("bb {text} {label}", "sport"))
    asked = fitted_question(task, "cc", shots, byte_tokenizer, "plain", 500)[0]
    assert asked == (
        "Sort: art, sport.\n\n"
        "Example 1\naa\nKind: art.\n\n"
        "Example 2\nbb {text} {label}\nKind: sport.\n\n"
        "Example 3\ncc\nKind:"
    )
    assert task.question("cc") == "Sort: art, sport.\n\nExample 1\ncc\nKind:"
    assert (task.answer("art", "plain"), task.answer("art", "qa")) == (" art", "art")
    assert WORDED._replace(wording="{text}：{label}").answer("art", "plain") == "art"
    short, cut = fitted_question(task, "word " * 9, shots, byte_tokenizer, "plain", 150)
    assert cut is False or short.startswith("Sort: art, sport.\n\nExample 1\n")


def test_letters_stand_for_the_labels(tmp_path, byte_tokenizer, tiny_model):
    task = TASK._replace(letters=True, instruction="Kinds: {labels}")
    assert task.question("aa") == "Kinds: A: art, B: sport\n\naa\nKind:"
    assert [task.answer(label, "qa") for label in task.labels] == ["A", "B"]
    write_task(tmp_path / "t", task, labelled(("aa", "sport")), labelled(("bb", "art")), 1, {})
    assert records(tmp_path / "t" / "pairs.jsonl")[0]["answer"] == "B"
    assert records(tmp_path / "t" / "train.jsonl")[0]["label"] == "sport"
    assert read_task(tmp_path / "t") == task
    # Each label is one id of the vocabulary, so the ways to read its logits agree.
    model = tiny_model(padded_vocab_size=320, block_size=64)
    run = checkpoint_of(model, byte_tokenizer, "qa")
    found, notes = predict(run, [task.question(f"{i}") for i in range(9)], task)
    assert found["first token"] == found["likelihood, sum"] == found["likelihood, mean"]
    assert notes == [] and set(found["first token"]) <= set(task.labels)


def test_a_letter_that_is_written_is_its_label(tmp_path, byte_tokenizer):
    task = TASK._replace(letters=True)
    run = checkpoint.load(save_scripted_run(tmp_path / "run", byte_tokenizer, "B", block_size=64))
    assert predict(run, ["aa"], task)[0]["generation"] == ["sport"]


def test_empty_answers_are_explained(tmp_path, byte_tokenizer):
    run = checkpoint.load(save_scripted_run(tmp_path / "run", byte_tokenizer, "", block_size=64))
    found, notes = predict(run, ["aa", "bb"], TASK)
    assert found["generation"] == [None, None]
    assert notes[0].startswith("2 of 2 generated answers are empty: the model ended at once")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(wording="{text}"), "expected {text} and then {label}"),
        (dict(wording="{label} {text}"), "expected {text} and then {label}"),
        (dict(wording="{text} {text} {label}"), "expected {text} and then {label}"),
        (dict(wording="{text} {label} {labels}"), "expected {text} and then {label}"),
        (dict(labels=tuple(map(str, range(27))), letters=True), "27 labels; expected at most 26"),
    ],
)
def test_mistakes_in_a_wording(change, message):
    assert message in TASK._replace(**change).problems()[0]
    assert TASK.problems() == WORDED.problems() == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task.json", None, "task.json: cannot be read"),
        ("task.json", "{", "task.json: cannot be read"),
        ("task.json", '{"labels": ["art"]}', "task.json: cannot be read"),
        (
            "test.jsonl",
            '{"text": "a", "label": "tech"}',
            "line 1: field `label`: tech is none of art",
        ),
        ("test.jsonl", '{"label": "art"}', "line 1: field `text` is missing"),
    ],
)
def test_mistakes_in_a_task(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_text(content + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        if name == "task.json":
            read_task(tmp_path)
        else:
            read_labelled(tmp_path / name, TASK.labels)


# -- questions -------------------------------------------------------------------------------------


def test_shots_are_of_each_class_and_drawn():
    rows = labelled(*[(str(i), ("art", "sport")[i % 2]) for i in range(40)])
    shots = draw_shots(rows, TASK.labels, 3, seed=1)
    assert sorted(shot.label for shot in shots) == ["art"] * 3 + ["sport"] * 3
    assert len(set(shots)) == 6 and shots == draw_shots(rows, TASK.labels, 3, seed=1)
    assert shots != draw_shots(rows, TASK.labels, 3, seed=2)
    assert draw_shots([], TASK.labels, 0, seed=1) == []
    with pytest.raises(UserError, match="shots=21: class art has 20 texts"):
        draw_shots(rows, TASK.labels, 21, seed=1)


def test_a_question_that_fits_is_shown_as_it_is(byte_tokenizer):
    shots = labelled(("aa", "art"))
    asked = fitted_question(TASK, "word " * 9, [], byte_tokenizer, "qa", 26)
    assert asked == ("word word word word\nKind:", False)  # 25 bytes and the answer mark
    asked = fitted_question(TASK, "bb", shots, byte_tokenizer, "qa", 50)
    assert asked == ("aa\nKind: art\n\nbb\nKind:", False)


@given(
    st.lists(st.lists(st.sampled_from(["a", "word", "河流"]), min_size=1), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(130, 400),
)
def test_a_question_is_shortened_to_its_room(byte_tokenizer, words, times, room):
    task = TASK._replace(length=250)
    texts = [" ".join(each * times) for each in words]
    shots = [Labelled("", text, "art") for text in texts[1:]]
    question, shortened = fitted_question(task, texts[0], shots, byte_tokenizer, "plain", room)
    assert len(question.encode()) <= room
    whole, _ = fitted_question(task, texts[0], shots, byte_tokenizer, "plain", 10_000)
    assert shortened == (len(whole.encode()) > room)
    assert question.endswith("\nKind:") and question.count("\nKind: art\n\n") == len(shots)
    if shortened:  # and no shorter than it must be: a word of each text, a blank, a step's rounding
        longest = max(len(word.encode()) for text in texts for word in text.split())
        assert len(question.encode()) >= room - (longest + 3) * len(texts)


def test_a_shortened_text_ends_with_a_whole_word_or_character(byte_tokenizer):
    task = TASK._replace(length=250)
    question, _ = fitted_question(task, "word " * 20, [], byte_tokenizer, "plain", 29)
    assert question == "word word word word\nKind:"
    question, _ = fitted_question(task, "河" * 40, [], byte_tokenizer, "plain", 30)
    assert question == "河" * 8 + "\nKind:"


def test_too_many_shots_are_refused(byte_tokenizer):
    shots = labelled(*[("word " * 10, "art")] * 8)
    with pytest.raises(UserError, match="shots=4: 8 examples leave each text fewer than 16"):
        fitted_question(TASK, "word " * 10, shots, byte_tokenizer, "plain", 120)


# -- readings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("art", "art"),
        (" Sport, not art", "sport"),
        ("a party for sport", "sport"),
        ("modern art deco", "modern art"),
        ("MODERN, art", "modern"),
        ("1art art2", None),
        ("", None),
        ("答案是体育。", "体育"),
    ],
)
def test_the_first_label_in_what_is_written(text, label):
    assert find_label(text, ("art", "modern", "modern art", "sport", "体育")) == label


@pytest.mark.parametrize("shape", [{}, dict(position="learned"), dict(n_kv_head=2)])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_logprobs_are_those_of_each_answer_alone(tiny_model, shape, batch_size):
    model = tiny_model(block_size=24, **shape)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 60, n).tolist() for n in (5, 20, 1, 12, 7)]
    answers = [[3], [3, 4, 5, 6], [9, 1], [59, 0, 59]]
    found = label_logprobs(model, prompts, answers, n_vocab=60, batch_size=batch_size)
    for prompt, row in zip(prompts, found, strict=True):
        for answer, logprobs in zip(answers, row, strict=True):
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([prompt + answer])))[0, :, :60]
            expected = logits.log_softmax(-1)[
                range(len(prompt) - 1, len(prompt + answer) - 1), answer
            ]
            np.testing.assert_allclose(logprobs, expected.numpy(), rtol=1e-4, atol=1e-5)


def checkpoint_of(model, tokenizer, prompt_format):
    return SimpleNamespace(model=model, tokenizer=tokenizer, prompt_format=prompt_format)


@pytest.mark.parametrize("prompt_format", ["qa", "plain"])
def test_each_reading_takes_the_likeliest_by_its_own_measure(
    tiny_model, byte_tokenizer, prompt_format
):
    """Compared with whole forward passes of prompt and label, label by label."""
    task = Task(("bat", "abs", "cable", "dime", "fog"), "Kind:", 20)
    model = tiny_model(padded_vocab_size=320, block_size=48, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that distant context affects the label
    questions = [task.question(f"{i * 37 % 100} text {i}") for i in range(24)]
    found, notes = predict(
        checkpoint_of(model, byte_tokenizer, prompt_format), questions, task, batch_size=5
    )
    measures = {
        "likelihood, sum": sum,
        "likelihood, mean": lambda row: sum(row) / len(row),
        "first token": lambda row: row[0],
    }
    if prompt_format == "plain":  # each label then begins with the same blank
        del measures["first token"]
        assert len(notes) == 1 and notes[0].startswith("not read by the first token: bat and abs")
    assert set(found) == {"generation", *measures} <= set(READINGS)
    for reading, measure in measures.items():
        expected = []
        for question in questions:
            values = {}
            for label in task.labels:
                answer = f" {label}" if prompt_format == "plain" else label
                mark = [byte_tokenizer.answer_mark] if prompt_format == "qa" else []
                prompt = [*question.encode(), *mark]
                ids = torch.tensor([[*prompt, *answer.encode()]])
                with torch.no_grad():
                    logprobs = model.logits(model(ids))[0, :, :261].log_softmax(-1)
                places = range(len(prompt) - 1, ids.size(1) - 1)
                values[label] = measure(logprobs[places, ids[0, len(prompt) :]].tolist())
            expected.append(max(values, key=values.get))
        assert found[reading] == expected
        assert len(set(expected)) > 1  # else this test shows little
    assert len(set(map(tuple, found.values()))) == len(found)


# -- figures ---------------------------------------------------------------------------------------


def test_scores_worked_by_hand():
    gold = ["a", "a", "a", "b", "b", "c"]
    found = scores(gold, ["a", "a", "b", "b", None, "a"], ("a", "b", "c"))
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert (found["count"], found["none"]) == (6, 1)
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["classes"]["a"] == pytest.approx(
        dict(precision=2 / 3, recall=2 / 3, f1=2 / 3, count=3)
    )
    assert found["classes"]["b"] == pytest.approx(
        dict(precision=1 / 2, recall=1 / 2, f1=1 / 2, count=2)
    )
    assert found["classes"]["c"] == dict(precision=0, recall=0, f1=0, count=1)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 3)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", None])), min_size=1)
)
def test_scores_are_scikit_learn_s(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    gold, given_labels = [p[0] for p in pairs], [p[1] for p in pairs]
    labels, spelled = ("a", "b", "c"), [label or "none" for label in given_labels]
    found = scores(gold, given_labels, labels)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(gold, spelled))
    precision, recall, f1, count = metrics.precision_recall_fscore_support(
        gold, spelled, labels=labels, zero_division=0
    )
    for i, label in enumerate(labels):
        row = dict(precision=precision[i], recall=recall[i], f1=f1[i], count=count[i])
        assert found["classes"][label] == pytest.approx(row)
    assert found["macro_f1"] == pytest.approx(f1.mean())
    matrix = metrics.confusion_matrix(gold, spelled, labels=[*labels, "none"])
    assert found["confusion"] == matrix[:3].tolist()


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (0, 40), (37, 40), (150, 286), (286, 286)]
)
def test_the_interval_is_wilson_s(hits, count):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("none", "columns"), [(0, 2), (4, 3)])
def test_the_picture_has_every_count_in_its_place(none, columns):
    panels = {
        "one": [[5, 1, 0], [0, 7, 0]],
        "two": [[5, 1, none], [0, 3, 0]],
        "three": [[6, 0, 0], [0, 7, 0]],
    }
    figure, notes = confusion_figure(panels, ["art", "sport"])
    assert notes == [] and len(figure.axes) == 3
    for axes, (heading, counts) in zip(figure.axes, panels.items(), strict=True):
        (image,) = axes.get_images()
        assert image.get_gid() == f"confusion:{heading}" and axes.get_title(loc="left") == heading
        assert image.get_array().shape == (2, columns)
        expected = {(x, y): str(n) for y, row in enumerate(counts) for x, n in enumerate(row) if n}
        assert {t.get_position(): t.get_text() for t in axes.texts} == expected
        names = ["art", "sport", "none"][:columns]
        assert [t.get_text() for t in axes.get_xticklabels()] == names
        assert [t.get_text() for t in axes.get_yticklabels()] == ["art", "sport"]
    shares = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(shares[:, :2], [[5 / 6, 1 / 6], [0, 1]])


def test_a_picture_of_many_classes_stays_a_picture():
    labels = [f"class {i}" for i in range(119)]
    figure, _ = confusion_figure({"one": np.eye(119, 120)}, labels)
    assert max(figure.get_size_inches()) < 20 and not figure.axes[0].texts
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == labels


# -- the scripts -----------------------------------------------------------------------------------

ROWS = [("art", f"a picture, number {i}") for i in range(10)]
ROWS += [("sport", f"a match, number {i}") for i in range(5)] + [("sport", "a match, number 0")]


@pytest.fixture
def prepared(tmp_path):
    """The folder that data/prepare_classes.py makes of ROWS."""
    lines = ["category,content", *(f'{label},"{text}"' for label, text in ROWS)]
    (tmp_path / "news.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [f"--input={tmp_path / 'news.csv'}", f"--output={tmp_path / 'news'}", "--ask=Kind:"]
    code, out, err = run_here("data/prepare_classes.py", *words, "--length=30")
    assert (code, err) == (0, "")
    assert "read 16 = kept 15 + duplicate 1 + two labels 0" in out
    assert "12 questions to learn from, 3 texts to test" in out
    return tmp_path / "news"


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_prepared_classes_keep_the_test_apart(prepared):
    train, pairs, test = (records(prepared / f"{n}.jsonl") for n in ("train", "pairs", "test"))
    assert sorted(row["label"] for row in test) == ["art", "art", "sport"]
    learned = {row["text"] for row in train}
    assert len(learned) == 12 and not learned & {row["text"] for row in test}
    assert {row["question"] for row in pairs} == {f"{text}\nKind:" for text in learned}
    facts = json.loads((prepared / "task.json").read_text(encoding="utf-8"))
    assert facts["labels"] == ["art", "sport"] and facts["source"] == "news.csv"


def test_several_columns_an_instruction_and_a_table_with_tabs(tmp_path):
    lines = ["topic\ttitle\tbody", "art\tNo body\t", "\tno label\tx"]
    lines += [f"{('art', 'sport')[i % 2]}\tTitle {i}\tBody, {i}" for i in range(10)]
    (tmp_path / "news.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [f"--input={tmp_path / 'news.tsv'}", f"--output={tmp_path / 'news'}"]
    words += ["--text=title,body", "--label=topic", r"--instruction=Sort:\n{labels}"]
    code, out, err = run_here("data/prepare_classes.py", *words)
    assert (code, err) == (0, "")
    assert "1 rows without text or label left out: news.tsv:3\n" in out
    questions = {row["question"] for row in records(tmp_path / "news" / "pairs.jsonl")}
    assert questions <= {
        f"Sort:\nart, sport\n\n{text}\nCategory:"
        for text in ("No body", *(f"Title {i}\nBody, {i}" for i in range(10)))
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--input=: expected a table"),
        (["--input={csv}x"], "news.csvx: no such file"),
        (["--input={csv}", "--text="], "--text"),
        (["--input=nowhere.csv"], "nowhere.csv: no such file"),
        (["--input={csv}", "--text=body"], "no column body"),
        (["--input={csv}", "--test_fraction=1"], "--test_fraction=1.0: expected above 0"),
        (["--input={csv}", "--length=0"], "--length=0: expected 1 or more"),
        (["--input={csv}", "--output={csv}/x"], "cannot be written"),
    ],
)
def test_mistakes_in_preparing(prepared, words, message):
    words = [word.format(csv=prepared.with_suffix(".csv")) for word in words]
    code, _, err = run_here("data/prepare_classes.py", *words)
    assert code == 2 and message in err and err.count("\n") == 1


def test_one_label_is_none(tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("category,content\n" + "".join(f"art,text {i}\n" for i in range(9)))
    words = [f"--input={table}", f"--output={tmp_path / 'made'}"]
    code, _, err = run_here("data/prepare_classes.py", *words)
    assert code == 2 and "expected two or more" in err and err.count("\n") == 1
    table.write_text("category,content\nart,the same\nsport,the same\n")
    code, _, err = run_here("data/prepare_classes.py", *words)
    assert code == 2 and "no text is left to learn from" in err and err.count("\n") == 1
    assert not (tmp_path / "made").exists()


def evaluate(prepared, run, *words):
    """The script's exit code, stdout, and stderr without the lines of progress."""
    code, out, err = _evaluate(prepared, run, *words)
    return code, out, re.sub(r"texts: .*\n", "", err)


def _evaluate(prepared, run, *words):
    script = "tools/evaluations-classification.py"
    return run_here(script, f"--out_dir={run}", f"--input={prepared / 'test.jsonl'}", *words)


def test_a_run_that_always_says_the_same(tmp_path, prepared, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "art", block_size=64)
    code, out, err = evaluate(prepared, run)
    assert (code, err) == (0, "")
    figures = json.loads((run / "classification.json").read_text(encoding="utf-8"))
    assert list(figures["readings"]) == list(READINGS) and figures["shortened"] == 0
    for found in figures["readings"].values():
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["confusion"] == [[2, 0, 0], [1, 0, 0]]
    for line in records(run / "classification.jsonl"):
        assert line["question"].endswith("\nKind:")
        assert {line[reading] for reading in READINGS} == {"art"}
    assert "66.7% [20.8%, 93.9%]" in out
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_shots_have_files_of_their_own(tmp_path, prepared, byte_tokenizer, tiny_model):
    run = save_run(
        tmp_path / "run", tiny_model(padded_vocab_size=320, block_size=128), byte_tokenizer
    )
    code, out, err = evaluate(prepared, run, "--shots=1", "--limit=2", f"--output={tmp_path / 'f'}")
    assert (code, err) == (0, "")
    assert "not read by the first token: art and sport begin with the same one" in out
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {
        "classification-1shot.json",
        "classification-1shot.jsonl",
        "confusion-1shot.png",
    }
    learned = {row["text"] for row in records(prepared / "train.jsonl")}
    lines = records(tmp_path / "f" / "classification-1shot.jsonl")
    assert len(lines) == 2
    for line in lines:
        first, second, _ = line["question"].split("\n\n")
        assert {first.split("\n")[0], second.split("\n")[0]} < learned
        assert {first.split("\n")[1], second.split("\n")[1]} == {"Kind: art", "Kind: sport"}


def test_tfidf_reads_the_same_task(tmp_path, prepared):
    """bench/tfidf.py, of English and, by characters, of Chinese."""
    pytest.importorskip("sklearn")
    code, out, err = run_here("bench/tfidf.py", f"--input={prepared / 'test.jsonl'}")
    assert (code, err) == (0, "") and out.count("100.0%") == 2 * 2  # and the interval's end
    train = labelled(*[("球队进球", "体育"), ("画家画展", "艺术")] * 4)
    test = labelled(("画家很多", "艺术"), ("两支球队", "体育"))
    write_task(tmp_path / "zh", Task(("体育", "艺术"), "类别：", 30), train, test, 1, {})
    assert run_here("bench/tfidf.py", f"--input={tmp_path / 'zh/test.jsonl'}")[1].count("100.0%")


def test_tfidf_without_scikit_learn(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    code, _, err = run_here("bench/tfidf.py", f"--input={prepared / 'test.jsonl'}")
    assert code == 2 and err == "first, pip install scikit-learn\n"


def test_shots_in_one_s_own_words(tmp_path, prepared, byte_tokenizer, tiny_model):
    run = save_run(
        tmp_path / "run", tiny_model(padded_vocab_size=320, block_size=256), byte_tokenizer
    )
    words = [
        "--shots=1",
        r"--wording=Example {number}\n{text}\nKind: {label}",
        "--instruction=Sort.",
    ]
    code, out, err = evaluate(prepared, run, *words)
    assert code == 0
    for line in records(run / "classification-1shot.jsonl"):
        parts = line["question"].split("\n\n")
        assert parts[0] == "Sort." and [part.split("\n")[0] for part in parts[1:]] == [
            "Example 1",
            "Example 2",
            "Example 3",
        ]
    code, _, err = evaluate(prepared, run, "--wording={text}")
    assert code == 2 and "--wording='{text}': expected {text} and then {label}" in err


def test_long_texts_are_shown_shorter(tmp_path, byte_tokenizer):
    text = "a long picture " * 9
    write_task(
        tmp_path / "t",
        TASK._replace(length=500),
        labelled((text, "art")),
        labelled((text, "art")),
        1,
        {},
    )
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "art", block_size=64)
    code, out, _ = evaluate(tmp_path / "t", run)
    assert code == 0 and "1 of 1 questions are too long for the block" in out
    (line,) = records(run / "classification.jsonl")
    room = 64 - answer_room(TASK, byte_tokenizer, "qa")
    assert room == 64 - 5 - 4 and len(line["question"].encode()) < room
    assert line["generation"] == "art"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input=nowhere/test.jsonl"], "task.json: cannot be read"),
        (["--shots=-1"], "shots=-1: expected at least 0"),
        (["--shots=9"], "shots=9: class art has 8 texts to learn from"),
        (["--shots=4"], "8 examples leave each text fewer than 16"),
        (["--limit=0"], "limit=0: expected at least 1"),
        (["--out_dir=nowhere"], "nowhere: no trained run here"),
    ],
)
def test_mistakes_in_evaluating(tmp_path, prepared, byte_tokenizer, words, message):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "art", block_size=64)
    code, _, err = evaluate(prepared, run, *words)
    assert code == 2 and message in err and err.count("\n") == 1
