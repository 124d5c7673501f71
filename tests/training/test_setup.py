"""What a run is set up from: the order of its blocks, its length, and its shape."""

import pytest
from test_train import dataset, tiny  # noqa: F401

from config.configurator import configure
from minigpt.common.errors import UserError
from minigpt.training.distributed import Distributed
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
