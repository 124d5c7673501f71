"""What a run is set up from: the order of its blocks, its length, and its shape."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import complaint, dataset, tiny, train  # noqa: F401

from config.configurator import configure
from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.models.number_format import Format, try_step
from minigpt.training import setup
from minigpt.training.distributed import Distributed
from minigpt.training.objectives.next_token import NextToken
from minigpt.training.setup import load_data, load_start, make_model


@pytest.fixture
def alone():
    distributed = Distributed()
    distributed.start("cpu")
    return distributed


def settings_of(*words):
    return configure(shared="all", argv=list(words), quiet=True)


def test_blocks_in_the_order_of_the_file_or_shuffled(byte_tokenizer, alone, tiny):  # noqa: F811
    first = {}
    for flag in ("--if_trav=true", "--shuffle=false", "--shuffle=true"):
        data = load_data(settings_of(*tiny, flag), byte_tokenizer, alone)
        first[flag] = [row for i in range(3) for row in data.batches.rows(i)]
    in_order, same, shuffled = first.values()
    assert in_order == same == list(range(12)) != shuffled


def test_epochs_determine_the_steps(byte_tokenizer, alone, tiny):  # noqa: F811
    """24 blocks, 8 a step."""
    settings = settings_of(*tiny, "--epochs=1.5")
    load_data(settings, byte_tokenizer, alone)
    assert settings.max_iters == 5 and settings.origin("max_iters") == "epochs=1.5"


def test_a_new_model_has_the_shape_of_the_settings(byte_tokenizer, tiny):  # noqa: F811
    settings = settings_of(*tiny, "--n_kv_head=1", "--mlp=gelu")
    assert load_start(settings, 1) == (None, None)
    config = make_model(settings, None, byte_tokenizer).config
    assert (config.n_layer, config.n_embd, config.n_kv_head, config.mlp) == (2, 32, 1, "gelu")
    assert config.dropout == 0.1
    with pytest.raises(UserError, match="n_kv_head=3"):
        make_model(settings_of(*tiny, "--n_kv_head=3"), None, byte_tokenizer)


# -- a dataset that moved --------------------------------------------------------------------------


def word(tiny, name):  # noqa: F811
    return next(w.partition("=")[2] for w in tiny if w.startswith(f"--{name}="))


@pytest.fixture
def moved(tmp_path, tiny, train):  # noqa: F811
    """(the run's folder, where its dataset is now)."""
    folder, data = tmp_path / "run", Path(word(tiny, "dataset"))
    copy = shutil.copytree(data, tmp_path / "first")
    words = [w for w in tiny if not w.startswith(("--dataset", "--out_dir"))]
    train(*words, f"--dataset={copy}", f"--out_dir={folder}", "--max_iters=1")
    return folder, copy.rename(tmp_path / "second")


def test_a_dataset_that_moved_is_known_by_its_blocks(moved, train):  # noqa: F811
    run, second = moved
    resume = f"--out_dir={run}", "--init_from=resume", "--max_iters=2"
    text = complaint(train, *resume)
    assert "first: missing" in text and "--dataset=" in text
    train(*resume, f"--dataset={second}")
    assert checkpoint.read_meta(run)["settings"]["dataset"] == str(second)
    train(f"--out_dir={run}", "--init_from=resume", "--max_iters=3")  # it has the new path now


def test_a_dataset_of_other_blocks_is_no_move(moved, train):  # noqa: F811
    run, second = moved
    path = second / "train.bin"
    tokens = bytearray(path.read_bytes())
    tokens[0] ^= 1
    path.write_bytes(tokens)
    words = f"--out_dir={run}", "--init_from=resume", "--max_iters=2", f"--dataset={second}"
    assert "has other blocks than" in complaint(train, *words)
    meta = json.loads((run / "config.json").read_text(encoding="utf-8"))
    del meta["dataset_hashes"]  # an earlier version made it
    (run / "config.json").write_text(json.dumps(meta), encoding="utf-8")
    assert "move the folder back" in complaint(train, *words)


def test_a_large_file_is_hashed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "HASHED", 2048)
    (tmp_path / "train.bin").write_bytes(bytes(range(256)) * 40)
    whole = setup.blocks_hash(tmp_path)
    data = bytearray((tmp_path / "train.bin").read_bytes())
    for place in (0, 5000, len(data) - 10):
        changed = data[:]
        changed[place : place + 10] = b"?" * 10
        (tmp_path / "train.bin").write_bytes(changed)
        assert setup.blocks_hash(tmp_path) != whole


# -- the number format -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "faster", "expected"),
    [
        ([], {"bfloat16"}, ("bfloat16", False)),
        ([], set(), ("float32", False)),
        (["--dtype=float32"], {"bfloat16"}, ("float32", False)),  # given: nothing is measured
        (["--max_iters=1000000"], {"bfloat16 compiled"}, ("float32", True)),
        (["--max_iters=1000000", "--compile=false"], {"bfloat16 compiled"}, ("float32", False)),
    ],
)
def test_a_mac_measures_its_number_format(
    byte_tokenizer,
    alone,
    tiny,  # noqa: F811
    monkeypatch,
    words,
    faster,
    expected,
):
    """On a CPU in place of a Mac's GPU; the times are made up, the steps are real."""

    def timed(model, step_loss, device, number_format):
        eager = Format(number_format.dtype)  # compiling takes a minute
        trial = try_step(model, step_loss, device, eager)
        name = str(number_format).replace("float32 compiled", "bfloat16 compiled")
        return replace(trial, seconds=0.5 if name in faster else 1.0)

    monkeypatch.setattr(setup, "MEASURED", ("cpu",))
    monkeypatch.setattr(setup, "try_step", timed)
    settings = settings_of(*tiny, *words)
    data = load_data(settings, byte_tokenizer, alone)
    model = make_model(settings, None, byte_tokenizer).train()
    objective = NextToken()
    dtype = setup.choose_number_format(settings, model, objective, data, alone, torch.float32)
    assert (str(dtype), settings.compile) == (f"torch.{expected[0]}", expected[1])
    assert model.training
    if not words:
        assert settings.dtype == expected[0] and settings.origin("dtype") == "measured on cpu"
