"""tools/sweep.py as its user runs it: stopped, killed, joined, refused; and the same runs at last.

python -m pytest tests/scripts/test_sweep.py        # skips where Optuna is not installed
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.image import imread
from tiny_run import pack, run_here, write_jsonl

from config.configurator import configure
from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.plotting.style import PALETTE
from minigpt.plotting.sweep import MOST_COLORED, OTHER_COLOR, sweep_figure

optuna = pytest.importorskip("optuna", reason="a sweep needs it: pip install optuna")

RECIPE = """
out_dir = "out/tiny"
dataset = "{dataset}"
tokenizer = "{tokenizer}"
block_size = 32
n_layer = 1
n_head = 2
n_embd = 16
batch_size = 4
gradient_accumulation_steps = 1
max_iters = 20
warmup_iters = 2
eval_interval = 10
eval_iters = 2
log_interval = 1
sample_prompt = ""
device = "cpu"
"""
RATES = ("--grid", "learning_rate=1e-2,1e-3")  # the better one comes last


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, byte_tokenizer, write_blocks):
    """A recipe file of a tiny model, and its dataset."""
    folder = tmp_path_factory.mktemp("recipe")
    dice = np.random.default_rng(0)
    rows = [[(list(dice.integers(97, 110, 32)), 1)] for _ in range(12)]
    blocks = pack(byte_tokenizer, rows[:8]), pack(byte_tokenizer, rows[8:])
    dataset = write_blocks(folder / "data", byte_tokenizer, *blocks)
    path = folder / "tiny.py"
    paths = dict(dataset=dataset.as_posix(), tokenizer=Path(byte_tokenizer.name).as_posix())
    path.write_text(RECIPE.format(**paths), encoding="utf-8")
    return path


@contextlib.contextmanager
def own_signals():
    """Undoes what Scripts() does to signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_in(folder, recipe, *words):
    """What tools/sweep.py prints when this process runs it in `folder`."""
    with own_signals(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, out, err = run_here("tools/sweep.py", recipe, *words)
    assert (code, err) == (0, "")
    return out


@pytest.fixture
def sweep(tmp_path, recipe):
    """sweep(*words): tools/sweep.py with the recipe and these words, in the test's own folder."""
    return lambda *words: run_in(tmp_path, recipe, *words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe):
    """(folder, output) of a sweep over two learning rates."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run_in(folder, recipe, *RATES)


@pytest.fixture
def module():
    """tools/sweep.py as a module."""
    with own_signals():
        yield importlib.import_module("tools.sweep")


def commands(output):
    return [line for line in output.splitlines() if line.startswith("$ ")]


def rows_of(output, head):
    """The table's rows as lists of words; `head` begins its first line."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    return [line.split() for line in lines[start + 1 : lines.index("", start)]]


def begun(folder):
    """How often train.py began in a run folder: (from nothing, resumed)."""
    text = (folder / "train.log").read_text(encoding="utf-8")
    return text.count("parameters, from scratch"), text.count("parameters, resuming")


# -- a whole sweep ---------------------------------------------------------------------------------


def test_the_table_has_the_best_first_by_bits_per_character(finished):
    folder, output = finished
    root = folder / "out" / "sweeps" / "tiny"
    rows = rows_of(output, "learning_rate")
    assert [row[0] for row in rows] == ["0.001", "0.01"]
    for rate, bits, loss, _, tokens in rows:
        run = root / f"learning_rate={rate}"
        found = json.loads((run / "perplexity.json").read_text(encoding="utf-8"))
        assert bits == f"{found['text']['bits_per_char']:.4f}"
        assert found["out_dir"] == str(Path("out", "sweeps", "tiny", run.name, "best"))
        meta = checkpoint.read_meta(run)
        assert meta["settings"]["learning_rate"] == float(rate) and meta["step"] == 20
        assert loss == f"{meta['best_val_loss']:.4f}"
        assert tokens == f"{20 * 4 * 32:,}"
        assert begun(run) == (1, 0)
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores) and scores[0] < scores[1] < 9
    assert imread(root / "curves.png").shape[1] > 1000


def test_the_best_is_proposed_for_longer(finished, recipe):
    """The command is one that train.py takes."""
    _, output = finished
    line = next(line for line in output.splitlines() if line.startswith("train the best 10 times"))
    words = line.split(": python train.py ")[1].split()
    assert words[0] == str(recipe)
    settings = configure(shared="all", argv=words, quiet=True)
    assert (settings.max_iters, settings.out_dir) == (200, "out/tiny_best")
    assert f"{settings.learning_rate:g}" == rows_of(output, "learning_rate")[0][0]


def test_a_finished_sweep_only_tells_again(finished, monkeypatch, recipe, module):
    folder, output = finished
    monkeypatch.chdir(folder)
    code, again, err = run_here("tools/sweep.py", recipe, *RATES)
    assert (code, err) == (0, "") and not commands(again) and len(commands(output)) == 4
    assert rows_of(again, "learning_rate") == rows_of(output, "learning_rate")
    assert "2 of them done" in again


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["--n_layer=2"], "  n_layer: 1 then, 2 now"),
        (["--grid", "n_head=1,2"], "grid: [['learning_rate', [0.01, 0.001]]] then, "),
        (["--metric=val_loss"], "  metric: bits_per_char then, val_loss now"),
        # Where the study is not here but its runs are:
        (["--n_layer=2", "--storage=sqlite:///other.db"], "holds the runs of a sweep with other"),
    ],
)
def test_another_sweep_of_the_same_name_is_refused(finished, monkeypatch, recipe, words, output):
    monkeypatch.chdir(finished[0])
    code, out, err = run_here("tools/sweep.py", recipe, *RATES, *words)
    assert code == 2 and output in err and "--study=NAME" in err and not commands(out)


def test_what_is_free_to_change(finished, monkeypatch, recipe, module):
    words = ["--log_interval=7", "--out_dir=elsewhere", "--study=tiny", "--heartbeat=3"]
    monkeypatch.chdir(finished[0])
    _, output, _ = run_here("tools/sweep.py", recipe, *RATES, *words)
    assert "2 of them done" in output and "--out_dir=elsewhere_best" in output


# -- mistakes are reported before the first trial --------------------------------------------------


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["--grid", "learning_rat=1"], "unknown key learning_rat; did you mean learning_rate?"),
        (["--grid", "n_layer=x"], "n_layer=x: expected int"),
        (["--grid", "trials=2,3"], "trials: is a setting of the sweep itself"),
        (["--grid", "out_dir=a,b"], "every trial has a folder of its own"),
        ([*RATES, "--n_layr=2"], "unknown key n_layr"),
        ([*RATES, "--overwrite=true", "--seeds=0"], "--seeds: seeds=0: expected at least 1"),
        ([*RATES, "--overwrite=true"], "a sweep deletes no run"),
        ([*RATES, "--init_from=resume"], "the same command resumes a sweep"),
        ([*RATES, "--study=a/b"], "--study=a/b: expected a name without folders"),
        (["--grid", "seed=1,2", "--seeds=2"], "--seeds and a sweep over seed"),
        (["--grid", "block_size=32,64", "--metric=val_loss"], "take bits_per_char"),
        (["--range", "block_size=32,64", "--trials=2"], "list some with --grid"),
        (
            [str(ROOT / "config/dpo.py"), *RATES],
            "preferences have no held-out text; take val_loss",
        ),
        (
            [str(ROOT / "config/dpo.py"), "--grid", "dpo_beta=0.1,1.0", "--metric=val_loss"],
            "dpo_beta: changes the val loss of stage=dpo itself",
        ),
        (["--grid", "block_size=32,64"], "block_size=64: "),
        (["--grid", "layout=pad,concat"], "layout=pad: "),
        (["--grid", "tokenizer=zh"], "tokenizer=zh: "),
        ([*RATES, "--dataset=nowhere"], "nowhere/meta.json: no prepared data here"),
        ([*RATES, "--storage=nonsense"], "--storage=nonsense: "),
    ],
)
def test_errors_are_reported_before_the_first_trial(
    tmp_path, monkeypatch, recipe, module, words, output
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_here("tools/sweep.py", recipe, *words)
    assert code == 2 and output in err.replace("\\", "/") and not commands(out)
    assert not list(tmp_path.glob("out/sweeps/*/*=*"))


# -- stopped, killed, joined -----------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither kill -9 nor kill -INT")
def test_stopped_then_killed_then_finished(tmp_path, recipe, sweep):
    """Ctrl-C in the first trial, kill -9 in the same: a third start finishes both trials, and each
    of their steps was taken in one line of runs."""
    words = [*RATES, "--max_iters=200", "--metric=val_loss", "--heartbeat=1"]
    first, second = (
        tmp_path / "out" / "sweeps" / "tiny" / f"learning_rate={rate}" for rate in ("0.01", "0.001")
    )

    def steps():
        try:
            lines = (first / "log.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return 0
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def begin_and_end_it(at_step, number):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools/sweep.py"), str(recipe), *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while steps() < at_step:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as a terminal does: to all that listen to it
        return process.communicate(timeout=120)[0], process.returncode

    output, code = begin_and_end_it(20, signal.SIGINT)
    assert code == 0 and "stopped; the same command continues" in output
    assert "waiting: 2 of 2" in output and "no trial has finished yet" in output
    saved = checkpoint.load_state(first)["step"]
    assert 20 <= saved < 200  # train.py ended in its own time

    # It puts the trial back at the queue's end; the other one comes first now.
    shutil.copytree(first, tmp_path / "kept")
    first, second = second, first
    _, code = begin_and_end_it(25, signal.SIGKILL)
    assert code == -signal.SIGKILL

    assert len(rows_of(sweep(*words), "learning_rate")) == 2
    for run in (first, second):
        assert begun(run) == (1, 1)
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 201))
    head = (tmp_path / "kept" / "log.jsonl").read_text().splitlines()
    assert (second / "log.jsonl").read_text().splitlines()[: len(head)] == head


def test_two_that_join_and_a_trial_that_fails(tmp_path, recipe, sweep):
    words = ["--grid", "learning_rate=1e-3,1e30,1e-2,2e-3", "--metric=val_loss", "--heartbeat=1"]
    command = [sys.executable, str(ROOT / "tools/sweep.py"), str(recipe), *words]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    both = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    output = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    trained = [line for out, _ in output for line in commands(out)]
    assert len(trained) == 4 and all(commands(out) for out, _ in output)
    runs = sorted((tmp_path / "out" / "sweeps" / "tiny").glob("learning_rate=*"))
    assert [begun(run) for run in runs] == [(1, 0)] * 4
    for out, _ in output:
        assert {row[0] for row in rows_of(out, "learning_rate")} == {"0.001", "0.01", "0.002"}
        line = next(line for line in out.splitlines() if line.startswith("failed: "))
        assert line.startswith("failed: learning_rate=1e_30: step ") and " is nan" in line
    assert not commands(sweep(*words))
    (line,) = commands(sweep(*words, "--retry=true"))
    assert "=1e+30 " in line
    assert begun(runs[-1]) == (1, 1) and "1e_30" in runs[-1].name


# -- parts -----------------------------------------------------------------------------------------


def settings_of(module, *words):
    return configure(module.Settings, shared="all", argv=list(map(str, words)), quiet=True)


def test_datasets_are_made_once_with_the_same_held_out_text(
    tmp_path, monkeypatch, module, byte_tokenizer, capsys
):
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"{i}：" + "一句话。" * (5 + i)} for i in range(40)]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    settings = settings_of(
        module, "--input=texts.jsonl", f"--tokenizer={byte_tokenizer.name}", "--layout=split"
    )
    grid = ["block_size=32", "64", "n_layer=1", "2"]
    plan = module.read_plan(grid, [], 0, settings.read)
    datasets = module.prepared(settings, plan, tmp_path, module.Scripts())
    assert len(commands(capsys.readouterr().out)) == 2
    blocks = [json.loads((folder / "meta.json").read_text()) for folder in datasets.values()]
    assert [meta["block_size"] for meta in blocks] == [32, 64]
    assert {meta["layout"] for meta in blocks} == {"split"}
    held_out = {(folder / "val.jsonl").read_bytes() for folder in datasets.values()}
    assert len(held_out) == 1 and held_out.pop()
    assert module.prepared(settings, plan, tmp_path, module.Scripts()) == datasets
    assert not commands(capsys.readouterr().out)
    # Other texts, after a first try that went wrong elsewhere, are not taken for these.
    (tmp_path / "texts.jsonl").rename(tmp_path / "others.jsonl")
    settings.set("input", "others.jsonl", "--input")
    plan_of_one = module.read_plan(grid[:1], [], 0, settings.read)
    module.prepared(settings, plan_of_one, tmp_path, module.Scripts())
    assert len(commands(capsys.readouterr().out)) == 1
    # Each trial gets its own, and all are judged by the first.
    trainer = module.Trainer(settings, plan, tmp_path, None, datasets)
    paths = [trainer.words(values)[-1] for values in plan.combinations()]
    first, second = (f"--dataset={folder}" for folder in datasets.values())
    assert paths == [first, first, second, second] and f"--dataset={trainer.judge}" == first


def test_a_mistake_in_the_first_command_does_not_bind_the_second(
    tmp_path, monkeypatch, recipe, module
):
    monkeypatch.chdir(tmp_path)
    for words in (["--dataset=nowhere"], ["--n_head=1", "--dataset=nowhere2"]):
        code, _, err = run_here("tools/sweep.py", recipe, *RATES, *words)
        assert code == 2 and "/meta.json: no prepared data here" in err.replace("\\", "/")


def test_texts_that_cannot_be_prepared(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    settings = settings_of(module, "--input=nowhere.txt")
    plan = module.read_plan(["block_size=32"], [], 0, settings.read)
    with pytest.raises(UserError, match=r"could not be prepared: .*nowhere\.txt"):
        module.prepared(settings, plan, tmp_path, module.Scripts())


class Scripted:
    """Scripts that leave what train.py and the evaluation would: val losses by the seed, and three
    times as many bits."""

    def __init__(self, losses, code=0, last="done"):
        self.losses, self.code, self.last, self.words = losses, code, last, []

    def call(self, log, *words):
        self.words.append(words)
        flags = dict(word.lstrip("-").split("=", 1) for word in words[1:])
        if words[0] == "train.py":
            self.loss = self.losses[int(flags.get("seed", 0))]
            lines = [
                dict(step=step, tokens=step * 64, minutes=step / 2, val_loss=value)
                for step, value in ((0, 5.0), (1, self.loss), (2, self.loss + 1))
            ]
            write_jsonl(Path(flags["out_dir"]) / "log.jsonl", lines)
        else:
            found = {"text": {"bits_per_char": 3 * self.loss}}
            Path(flags["output"]).write_text(json.dumps(found), encoding="utf-8")
        return self.code, self.last


def trainer_of(module, folder, scripts, *words):
    """A Trainer of two block sizes, whose datasets are called data32 and data64."""
    settings = settings_of(module, *words)
    plan = module.read_plan(["block_size=32", "64"], [], 0, settings.read)
    datasets = {
        tuple(module.data_knobs(settings, values).values()): Path(f"data{values['block_size']}")
        for values in plan.combinations()
    }
    return module.Trainer(settings, plan, folder, scripts, datasets)


@pytest.mark.parametrize(("metric", "times"), [("val_loss", 1), ("bits_per_char", 3)])
def test_a_trial_of_several_seeds(tmp_path, module, capsys, metric, times):
    scripts = Scripted({7: 2.0, 8: 4.0, 9: 4.5})
    words = ["--seeds=3", "--seed=7", f"--metric={metric}"]
    score, figures = trainer_of(module, tmp_path, scripts, *words)({"block_size": 64})
    assert score == 3.5 * times
    assert figures["spread"] == statistics.stdev([2.0 * times, 4.0 * times, 4.5 * times])
    assert (figures["val_loss"], figures["minutes"], figures["tokens"]) == (3.5, 3.0, 384.0)
    assert figures["curves"][1] == [[0, 5.0], [64, 4.0], [128, 5.0]]
    runs = {f"block_size=64+seed={seed}" for seed in (7, 8, 9)}
    assert {path.name for path in tmp_path.iterdir()} == runs
    # Each is trained on the blocks that it needs, and all are scored on the same text.
    trained = [words for words in scripts.words if words[0] == "train.py"]
    scored = [words for words in scripts.words if words[0] == "evaluations-perplexity.py"]
    assert len(trained) == 3 and len(scored) == (3 if times == 3 else 0)
    assert all({"--block_size=64", "--dataset=data64"} <= set(words) for words in trained)
    assert all("--dataset=data32" in words for words in scored)
    assert [word for word in trained[2] if "seed" in word][-2] == "--seed=9"
    assert f" {score:.4f}, 3.0 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "last", "error", "output"),
    [
        (2, "the GPU is out of memory", "TrialFailed", "the GPU is out of memory"),
        (-9, "step 3", "TrialFailed", "killed by signal 9; the system does that when memory"),
        (0, "stopped; go on with: python train.py", "TrialStopped", ""),
    ],
)
def test_how_a_run_may_end(tmp_path, module, capsys, code, last, error, output):
    trainer = trainer_of(module, tmp_path, Scripted({0: 1.0}, code, last))
    with pytest.raises(getattr(module, error)) as caught:
        trainer({"block_size": 32})
    assert output in str(caught.value)


@pytest.mark.parametrize(
    ("words", "values", "flags"),
    [
        ([], {}, ["--max_iters=200000"]),
        (["--epochs=3"], {}, ["--epochs=30"]),
        (["--max_iters=123456"], {}, ["--max_iters=1234560"]),
        (["--max_minutes=1.5"], {"max_iters": 70}, ["--max_iters=700", "--max_minutes=15"]),
        (["config/cpu_small_sft.py"], {}, ["--epochs=60"]),
        (["config/cpu_small_sft.py", "--max_iters=100"], {}, ["--max_iters=1000"]),
        (["config/cpu_small_sft.py"], {"max_iters": 100}, ["--max_iters=1000"]),
        (["config/cpu_small_sft.py", "--max_iters=7"], {"epochs": 2.0}, ["--epochs=20"]),
        (["config/cpu_small_sft.py", "--max_iters=7"], {"epochs": None}, ["--max_iters=70"]),
        (["--max_minutes=2"], {"max_minutes": None, "epochs": 1.5}, ["--epochs=15"]),
    ],
)
def test_what_makes_a_run_longer(module, words, values, flags):
    assert module.budget(settings_of(module, *words), values) == flags


def test_the_picture_shows_every_trial_and_names_the_best():
    curve = [[0, 9.0], [100, 5.0], [200, 4.0]]
    trials = [(f"0.{i}, {i}", 4 + i, [curve, curve[:2]]) for i in range(1, 10)]
    figure, notes = sweep_figure(trials, "learning_rate, n_layer", "bits/char")
    (axes,) = figure.axes
    lines = {line.get_gid(): line for line in axes.get_lines()}
    assert set(lines) == {f"trial:{rank}:{i}" for rank in range(9) for i in (0, 1)}
    assert lines["trial:3:0"].get_xydata().tolist() == curve
    for rank in range(9):
        colour = PALETTE[rank] if rank < MOST_COLORED else OTHER_COLOR
        assert lines[f"trial:{rank}:1"].get_color() == colour
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "learning_rate, n_layer:\nbits/char"
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [f"0.{i}, {i}: {4 + i}.000" for i in range(1, 7)] + ["3 others, up to 13.000"]
    assert notes == []
    figure, _ = sweep_figure(trials[:1], "learning_rate, n_layer", "bits/char")
    assert len(figure.legends[0].get_texts()) == 1


def test_a_study_over_a_range_by_the_script(tmp_path, sweep):
    words = ["--range", "learning_rate=1e-4,1e-2", "--trials=1", "--metric=val_loss", "--study=r"]
    output = sweep(*words, "--max_iters=4")
    ((rate, *_),) = rows_of(output, "learning_rate")
    assert "study r: 1 trials of learning_rate, 0 of them done" in output
    assert [path.name for path in (tmp_path / "out/sweeps/r").glob("*=*")] == [
        f"learning_rate={rate}"
    ]
    assert 1e-4 <= float(rate) <= 1e-2
