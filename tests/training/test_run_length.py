"""The length of a run: recipes meet little data, flags are kept, and every change is noted."""

import pytest

from config.configurator import configure
from minigpt.training.run_length import MOST_PASSES, SHORT_EPOCH, fit_run_length

TUNING = """
init_from = "out/base"
epochs = 4
batch_size = 8
gradient_accumulation_steps = 1
warmup_iters = 20
"""
BASE = TUNING.replace("epochs = 4", "max_iters = 5000").replace("out/base", "scratch")


def fitted(n_blocks, *words, world=1, recipe=None, tmp_path=None):
    """(settings, notes) of a run over `n_blocks`. recipe: assignments, as a file has them."""
    argv = list(words)
    if recipe:
        path = tmp_path / "recipe.py"
        path.write_text(recipe, encoding="utf-8")
        argv = [str(path), *argv]
    settings = configure(shared="all", argv=argv, quiet=True)
    return settings, fit_run_length(settings, n_blocks, world)


def length(settings, n_blocks):
    """(steps in an epoch, epochs of the run)."""
    epoch = n_blocks / (settings.batch_size * settings.gradient_accumulation_steps)
    return epoch, settings.max_iters / epoch


# -- fine-tuning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_blocks", [1, 3, 16, 80, 200])
def test_few_pairs_get_smaller_steps_and_more_epochs(tmp_path, n_blocks):
    settings, notes = fitted(n_blocks, recipe=TUNING, tmp_path=tmp_path)
    epoch, _ = length(settings, n_blocks)
    assert settings.max_iters >= 200 and settings.epochs >= 4
    assert epoch >= SHORT_EPOCH or settings.batch_size == 1
    assert settings.warmup_iters <= settings.max_iters / 10
    (note,) = notes
    assert f"{n_blocks} blocks" in note and f"batch_size 8 → {settings.batch_size}" in note
    assert f"now {settings.max_iters}" in note


def test_many_pairs_change_nothing(tmp_path):
    settings, notes = fitted(2000, recipe=TUNING, tmp_path=tmp_path)
    assert (settings.max_iters, settings.batch_size, settings.warmup_iters) == (1000, 8, 20)
    assert notes == []


def test_short_epochs_of_a_long_run_change_nothing(tmp_path):
    """As config/quickstart_sft.py: 21 steps an epoch, twelve epochs."""
    recipe = TUNING.replace("epochs = 4", "epochs = 12")
    settings, notes = fitted(168, recipe=recipe, tmp_path=tmp_path)
    assert (settings.max_iters, settings.batch_size, notes) == (252, 8, [])


def test_flags_are_kept_and_the_note_says_what_they_cost(tmp_path):
    words = ["--batch_size=8", "--epochs=3"]
    settings, notes = fitted(16, *words, recipe=TUNING, tmp_path=tmp_path)
    assert (settings.max_iters, settings.batch_size, settings.epochs) == (6, 8, 3)
    assert "16 blocks would be only 6 steps" in notes[0] and "--batch_size" in notes[0]
    assert "warmup_iters=20 of 6 steps" in notes[1] and settings.warmup_iters == 0


def test_accumulation_goes_first_and_processes_count(tmp_path):
    recipe = TUNING.replace("steps = 1", "steps = 4")
    settings, _ = fitted(600, recipe=recipe, tmp_path=tmp_path, world=2)
    assert (settings.gradient_accumulation_steps, settings.batch_size) == (1, 8)
    assert settings.max_iters >= 150


def test_pretraining_by_epochs_is_not_read_hundreds_of_times(tmp_path):
    recipe = BASE.replace("max_iters = 5000", "epochs = 1")
    settings, notes = fitted(3, recipe=recipe, tmp_path=tmp_path)
    assert settings.epochs == MOST_PASSES and "epochs 1 → 20" in notes[0]


def test_dpo_is_not_stretched():
    words = ["--stage=dpo", "--init_from=out/x", "--epochs=1", "--batch_size=16"]
    settings, notes = fitted(40, *words, "--gradient_accumulation_steps=1")
    assert settings.max_iters == 3 and settings.epochs == 1
    assert all("warmup" in note for note in notes)


# -- pretraining -----------------------------------------------------------------------------------


def test_little_text_is_not_read_hundreds_of_times(tmp_path):
    """100 KB of Chinese text: about a hundred blocks of 256."""
    settings, notes = fitted(100, recipe=BASE, tmp_path=tmp_path)
    epoch, passes = length(settings, 100)
    assert passes == pytest.approx(MOST_PASSES, abs=1) and epoch >= SHORT_EPOCH
    assert "5,000 steps read the 100 blocks 400 times" in notes[0] and "max_iters" in notes[0]


def test_enough_text_changes_nothing(tmp_path):
    settings, notes = fitted(2400, recipe=BASE, tmp_path=tmp_path)
    assert (settings.max_iters, settings.batch_size, notes) == (5000, 8, [])


def test_steps_by_hand_are_taken_with_a_note(tmp_path):
    settings, notes = fitted(100, "--max_iters=5000", recipe=BASE, tmp_path=tmp_path)
    assert settings.max_iters == 5000 and settings.batch_size == 8
    assert len(notes) == 1 and "400 times" in notes[0]


# -- the warm-up -----------------------------------------------------------------------------------


def test_a_warmup_longer_than_the_run_is_mended():
    settings, notes = fitted(10_000, "--max_iters=40", "--warmup_iters=200")
    assert settings.warmup_iters == 4
    assert len(notes) == 1 and "warmup_iters=200 of 40 steps" in notes[0] and "to 4" in notes[0]


def test_a_default_warmup_is_shortened_to_a_tenth():
    settings, notes = fitted(100_000, "--max_iters=300")
    assert settings.warmup_iters == 30 and "warmup_iters=200" in notes[0]
    settings, notes = fitted(100_000, "--max_iters=2000")
    assert settings.warmup_iters == 200 and notes == []


def test_a_long_warmup_by_hand_is_kept_with_a_note():
    settings, notes = fitted(10_000, "--max_iters=240", "--warmup_iters=100")
    assert settings.warmup_iters == 100 and "more than a tenth" in notes[0]


def test_a_resumed_run_is_not_fitted_again():
    settings, notes = fitted(3, "--init_from=resume", "--epochs=5", "--warmup_iters=9")
    assert settings.max_iters == 1 and settings.warmup_iters == 9 and notes == []
