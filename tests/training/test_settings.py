"""Settings of a run: `if_trav` beside `shuffle`, what is inherited, and runs of older versions."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from config.configurator import configure
from minigpt.common.errors import UserError
from minigpt.training.settings import (
    inherit_settings,
    keep_step_size,
    prefer_max_iters,
    present_settings,
)


def resolve(*words):
    return configure(shared="all", argv=list(words), quiet=True)


def parent(**saved):
    """As much of a Checkpoint as settings are inherited from."""
    meta = dict(settings=saved, model=dict(n_layer=3, n_kv_head=2, dropout=0.5))
    return SimpleNamespace(folder=Path("out/base"), meta=meta)


# -- an alias --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "shuffle"),
    [
        ([], True),
        (["--if_trav=true"], False),
        (["--if_trav"], False),
        (["--if_trav=false"], True),
        (["--shuffle=false"], False),
        (["--shuffle=false", "--if_trav=false"], True),  # later wins
        (["--if_trav=true", "--shuffle=true"], True),
    ],
)
def test_if_trav_is_the_opposite_of_shuffle(words, shuffle):
    settings = resolve(*words)
    assert settings.shuffle is shuffle and "if_trav" not in settings.as_dict()
    assert settings.origin("shuffle") == (words[-1].partition("=")[0] if words else "default")


def test_if_trav_in_a_recipe(tmp_path):
    recipe = tmp_path / "classic.py"
    recipe.write_text("if_trav = True\n", encoding="utf-8")
    assert resolve(str(recipe)).shuffle is False
    assert resolve(str(recipe), "--shuffle=true").shuffle is True
    recipe.write_text("if_trav = 3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"classic.py:1: if_trav=3: expected bool"):
        resolve(str(recipe))
    assert resolve().read("if_trav", "true", "--grid") is True  # as tools/sweep.py reads it


def test_a_script_that_does_not_read_it_says_so():
    with pytest.raises(UserError, match="does not read shuffle"):
        configure(shared="seed", argv=["--if_trav=true"], quiet=True)


# -- from a checkpoint -----------------------------------------------------------------------------


def test_a_run_of_an_older_version_is_inherited_by_the_present_names():
    settings = resolve("--init_from=resume")
    old = dict(if_trav=True, dpo_average=False, dpo_label_smoothing=0.0, eval_iters=7, unknown=1)
    inherit_settings(settings, parent(**old), resumed=True)
    assert settings.shuffle is False and settings.eval_iters == 7
    assert (settings.n_layer, settings.n_kv_head, settings.dropout) == (3, 2, 0.0)
    assert settings.origin("shuffle") == "out/base"
    with pytest.raises(UserError, match="shuffle=true contradicts out/base, which has false"):
        inherit_settings(resolve("--shuffle=true"), parent(if_trav=True), resumed=True)


def test_a_removed_setting_that_changed_the_training_is_refused():
    saved = dict(dpo_average=True, dpo_label_smoothing=0.1, if_trav=False)
    with pytest.raises(UserError) as caught:
        present_settings(saved, "out/old")
    lines = str(caught.value).splitlines()
    assert [line.split(" no longer")[0] for line in lines] == [
        "out/old: dpo_average=True",
        "out/old: dpo_label_smoothing=0.1",
    ]


def test_what_only_a_resumed_run_inherits():
    saved = dict(seed=5, batch_size=9, tokenizer="gpt2", learning_rate=0.5)
    settings = resolve()
    inherit_settings(settings, parent(**saved))
    assert (settings.seed, settings.batch_size, settings.learning_rate) == (1337, 32, 1e-3)
    assert settings.tokenizer == "gpt2" and settings.n_layer == 3
    settings = resolve("--learning_rate=2", "--init_from=resume")
    inherit_settings(settings, parent(**saved), resumed=True)
    assert (settings.seed, settings.batch_size, settings.learning_rate) == (5, 9, 2)
    with pytest.raises(UserError) as caught:
        inherit_settings(resolve("--seed=6", "--n_layer=4"), parent(**saved), resumed=True)
    assert len(str(caught.value).splitlines()) == 2


def test_a_step_keeps_its_batches_on_another_number_of_processes():
    settings = resolve("--gradient_accumulation_steps=6")
    keep_step_size(settings, before=2, world_size=4)
    assert settings.gradient_accumulation_steps == 3
    with pytest.raises(UserError, match="takes 12 batches, which 8 processes cannot share"):
        keep_step_size(settings, before=4, world_size=8)


def test_max_iters_as_a_flag_replaces_epochs(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("epochs = 3\nmax_iters = 5\n", encoding="utf-8")
    for words, epochs in (([], 3), (["--max_iters=2"], None), (["--max_iters=2", "--epochs=1"], 1)):
        settings = resolve(str(recipe), *words)
        prefer_max_iters(settings)
        assert settings.epochs == epochs
    settings = resolve("--max_iters=2")
    prefer_max_iters(settings)
    assert settings.origin("epochs") == "default"
