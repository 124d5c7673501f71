"""The commands that messages propose are commands that work: each is run as it is printed."""

import re
import shlex

import pytest
import torch
from conftest import ROOT
from tiny_run import run_here, write_jsonl

from config.configurator import configure
from minigpt.models import checkpoint

SMALL = """
block_size = 64
n_layer = 1
n_head = 2
n_embd = 32
batch_size = 4
gradient_accumulation_steps = 1
max_iters = 3
warmup_iters = 0
eval_interval = 3
eval_iters = 1
sample_tokens = 4
device = "cpu"
"""
PATHS = ("YOUR_TEXTS", "YOUR_PAIRS", "PATH")


def commands(text):
    """The `python …` commands in a message, each as words. One ends at a line's end, or where the
    sentence continues."""
    found = re.findall(r"python ((?:[a-z]+/)?[\w-]+\.py(?: (?:[^\s;\"]|\"[^\"]*\")+)*)", text)
    return [shlex.split(command) for command in found]


def run(words, texts=None):
    """Run a command as printed, with `texts` in the place of a file of one's own."""
    words = [w.replace(place, str(texts)) if texts else w for w in words for place in [_place(w)]]
    script, *flags = words
    code, out, error = run_here(script, *flags)
    assert code == 0, f"{' '.join(words)}\n{error}"
    return out


def _place(word):
    return next((place for place in PATHS if f"={place}" in word), "\0")


@pytest.fixture
def texts(tmp_path):
    rows = [
        {"id": str(n), "text": f"第{n}条河流从山里流出，经过{n}个村庄，最后流进大海。" * 6}
        for n in range(40)
    ]
    return write_jsonl(tmp_path / "texts.jsonl", rows)


@pytest.fixture
def pairs(tmp_path):
    rows = [{"question": f"{n}加一等于几？", "answer": f"等于{n + 1}。"} for n in range(60)]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture(autouse=True)
def keep_torch():
    yield
    torch.set_flush_denormal(False)


def recipe(tmp_path, name, **more):
    lines = [f"{key} = {value!r}" for key, value in more.items()]
    path = tmp_path / f"{name}.py"
    path.write_text(SMALL + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_without_data_the_hint_prepares_what_the_run_needs(tmp_path, texts, pairs):
    """A base, then a fine-tuning of it: first the message, then its command, then the run; and the
    commands at the end of each run."""
    data, base = tmp_path / "data", tmp_path / "base"
    mine = recipe(tmp_path, "mine", out_dir=str(base), dataset=str(data))
    code, _, error = run_here("train.py", mine)
    assert code == 2 and error.count("\n") == 1
    (hint,) = commands(error)
    assert hint[:2] == ["data/prepare.py", str(mine)]
    run(hint, texts)
    out = run(["train.py", str(mine)])
    follow(out, "max_iters reached: step 3 of 3")

    words = ["evaluations-perplexity.py", f"--out_dir={base}", f"--dataset={tmp_path}/other"]
    code, _, error = run_here(*words)
    (hint,) = commands(error)
    assert code == 2 and "--block_size=64" in hint
    run(hint, texts)
    run(words)

    # The pairs take block size and tokenizer from the base, not from a recipe.
    words = [f"--init_from={base}", f"--dataset={tmp_path}/pairs", f"--out_dir={tmp_path}/tuned"]
    words += ["--device=cpu", "--epochs=0.5", "--eval_iters=1", "--sample_tokens=4"]
    code, _, error = run_here("train.py", *words)
    (hint,) = commands(error)
    assert code == 2 and hint[0] == "data/prepare_sft.py" and "--block_size=64" in hint
    run(hint, pairs)
    out = run(["train.py", *words])
    assert "--start=" in follow(out, "epochs=0.5 reached")[0][2]


def follow(out, reason):
    """Check the end of a training, run the commands that it proposes, and return them."""
    assert reason in out
    end = out[out.index(reason) :]
    assert "equally likely" in end and "untrained: 8,192" in end
    proposed = commands(end)
    assert len(proposed) == 2 and proposed[0][0] == "sample.py"
    for words in proposed:
        run(words)
    return proposed


def test_a_run_that_minutes_ended_can_be_continued_as_it_says(tmp_path, texts):
    mine = recipe(tmp_path, "mine", out_dir=str(tmp_path / "run"), dataset=str(tmp_path / "data"))
    run(["data/prepare.py", str(mine), f"--input={texts}"])
    words = ["--max_iters=1000000", "--eval_interval=1000000", "--max_minutes=0.02"]
    out = run(["train.py", str(mine), *words])
    assert re.search(r"max_minutes=0.02 are over: step \d+ of 1,000,000 \(0%\)", out)
    _, resume = commands(out[out.index("are over") :])
    assert resume[-1] == "--max_minutes=0.04"
    step = checkpoint.read_meta(tmp_path / "run")["step"]
    run(resume)
    assert checkpoint.read_meta(tmp_path / "run")["step"] > step


def test_resuming_nothing_names_the_command_that_starts_it(tmp_path, texts):
    mine = recipe(tmp_path, "mine", dataset=str(tmp_path / "data"))
    run(["data/prepare.py", str(mine), f"--input={texts}"])
    folder = tmp_path / "run"
    code, _, error = run_here("train.py", mine, f"--out_dir={folder}", "--init_from=resume")
    assert code == 2
    (hint,) = commands(error)
    run(hint)
    assert checkpoint.read_meta(folder)["settings"]["n_embd"] == 32


@pytest.mark.parametrize(
    "folder", sorted(f"out/{path.stem}" for path in (ROOT / "config").glob("*.py"))
)
def test_a_recipe_is_proposed_for_the_folder_that_it_trains(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, is_its in ((folder, True), (f"{folder}/best", True), (f"out/x/{folder[4:]}", False)):
        code, _, error = run_here("sample.py", f"--out_dir={place}", "--start=x")
        assert code == 2
        for words in commands(error):
            assert is_its, error
            settings = configure(shared="all", argv=[str(ROOT / words[1])], quiet=True)
            assert settings.out_dir == folder, error


def test_a_log_that_is_missing_proposes_no_training(tmp_path):
    code, _, error = run_here(
        "visualize.py", f"--runs={tmp_path}/run", f"--output={tmp_path}/x.png"
    )
    assert code == 2 and "--runs takes run folders" in error and not commands(error)
