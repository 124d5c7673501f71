"""The recipe for a number of minutes (minigpt/training/planning/dial.py)."""

import math
import re

import numpy as np
import pytest
import torch

from config.configurator import configure
from minigpt.common.errors import UserError
from minigpt.data.block_format import TARGET
from minigpt.training.distributed import Distributed
from minigpt.training.planning import dial
from minigpt.training.run_length import MOST_PASSES
from minigpt.training.settings import check_ranges
from model import GPTConfig

ROWS = 8256


def settings_of(*words):
    settings = configure(shared="all", argv=list(words), quiet=True)
    check_ranges(settings)
    return settings


def planned(monkeypatch, *words, n_tokens=10**9, flops=1e11):
    """(settings, plans, recipe) where this machine computes `flops` a second, of which an optimizer
    step takes what Muon takes for it."""

    def seconds_of(config, settings, device, dtype):
        torch.rand(config.n_layer)  # as new weights do
        n = 12 * config.n_layer * config.n_embd**2
        return 6 * (n + ROWS * config.n_embd) / flops, 10 * n * config.n_embd / flops

    monkeypatch.setattr(dial, "seconds_of", seconds_of)
    settings, main = settings_of(*words), Distributed()
    main.device = "cpu"
    random = torch.get_rng_state()
    plans = dial.make_plans(settings, n_tokens, ROWS, main, None)
    assert torch.equal(torch.get_rng_state(), random)  # the run's own weights are drawn after it
    best = min(plans, key=lambda plan: plan.loss)
    dial.apply(settings, best, n_tokens, main)
    return settings, plans, dial.recipe_text(settings, plans, best, n_tokens)


def test_repeated_text_is_worth_less():
    assert dial.worth(500, 1000) == 500
    assert dial.worth(1000, 1000) == 1000
    # One repetition: 1 + 15.4 (1 - e^(-1/15.4)) = 1.968 texts; many: 16.4 texts and no more.
    assert dial.worth(2000, 1000) == pytest.approx(1968, abs=1)
    assert dial.worth(10**9, 1000) == pytest.approx(16400)


def test_more_minutes_and_faster_machines_get_larger_models(monkeypatch):
    widths = [
        planned(monkeypatch, f"--budget_minutes={minutes}", flops=flops)[0].n_embd
        for minutes, flops in ((1, 1e11), (60, 1e11), (60, 1e13), (3000, 3e14))
    ]
    assert widths == sorted(widths) and len(set(widths)) >= 3, widths


def test_little_text_ends_the_run_after_its_passes(monkeypatch):
    settings, plans, recipe = planned(monkeypatch, "--budget_minutes=600", n_tokens=200_000)
    step = settings.batch_size * settings.gradient_accumulation_steps * settings.block_size
    assert settings.max_iters * step <= MOST_PASSES * 200_000 + step
    assert f"{MOST_PASSES}.0 passes" in recipe


def test_flags_overrule_it_and_recipes_do_not(monkeypatch):
    words = ["config/cpu_small.py", "--budget_minutes=20", "--n_embd=320", "--learning_rate=1e-4"]
    settings, plans, _ = planned(monkeypatch, *words)
    (shape,) = [plan.shape for plan in plans]  # with the recipe's other numbers
    assert (shape["n_layer"], shape["n_head"], shape["n_embd"]) == (4, 4, 320)
    assert settings.learning_rate == 1e-4
    settings, plans, _ = planned(monkeypatch, "config/cpu_small.py", "--budget_minutes=0.2")
    assert settings.n_embd == 128 and len(plans) > 1


@pytest.mark.parametrize("recipe", (None, "config/minimind.py"))
def test_the_recipe_gives_the_same_run(monkeypatch, tmp_path, recipe):
    """minimind has fewer heads of keys than of queries, which a smaller model cannot keep."""
    words = ["--budget_minutes=30", "--seed=5", "--block_size=96", "--overwrite=true"]
    words = [recipe, *words] if recipe else words
    settings, _, text = planned(monkeypatch, *words)
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    again = settings_of(str(path)).as_dict()
    assert again | {"budget_minutes": 30.0, "overwrite": True} == settings.as_dict()
    assert settings.n_kv_head is None


def test_a_gpus_memory_decides_about_the_batch(monkeypatch):
    settings = settings_of("--budget_minutes=30")
    config = GPTConfig(padded_vocab_size=ROWS, n_layer=12, n_head=12, n_embd=768, block_size=512)

    def batch(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        return dial.batch_that_fits(config, settings, 128, "cuda:0", torch.bfloat16)

    batches = [batch(gigabytes * 1e9) for gigabytes in (1, 6, 12, 80)]
    assert batches[0] == 0 < batches[1] < batches[2] < batches[3] == 128, batches
    assert all(128 % each == 0 for each in batches[1:])


@pytest.mark.parametrize("words", ("--init_from=out/base", "--init_from=resume", "--stage=distill"))
def test_only_pretraining_from_scratch_is_planned(words):
    words = [words, "--teacher=out/base"] if "distill" in words else [words]
    with pytest.raises(UserError, match=r"budget_minutes.*none where the shape comes with"):
        settings_of("--budget_minutes=5", *words)


def test_a_real_run_chooses_and_trains(tmp_path, byte_tokenizer, write_blocks, run_script):
    tokens = np.random.default_rng(0).integers(0, 256, (40, 16))
    split = (tokens, np.full(tokens.shape, TARGET))
    data = write_blocks(tmp_path / "data", byte_tokenizer, split, split)
    words = [f"--dataset={data}", f"--tokenizer={byte_tokenizer.name}", "--budget_minutes=0.02"]
    words += ["--sample_tokens=4", "--eval_iters=1", "--device=cpu", "--n_embd=16", "--n_head=1"]
    run = tmp_path / "run"
    done = run_script("train.py", f"--out_dir={run}", "--n_layer=1", *words)
    assert "chosen by --budget_minutes" in done.stdout, done.stderr
    kept = (run / "recipe.py").read_text(encoding="utf-8")
    assert kept in done.stdout
    assert math.isfinite(float(re.search(r"expected loss ([\d.]+)", kept)[1]))


def test_rates_are_those_of_muon():
    with pytest.raises(UserError, match="optimizer=adamw: expected muon with budget_minutes"):
        settings_of("--budget_minutes=5", "--optimizer=adamw")
