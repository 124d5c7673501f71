"""Training steps of other projects at a shape of ours, from clones that the user has.

    step = nanogpt_step(Path("peers/nanoGPT"), config)
    step = minimind_step(Path("peers/minimind"), config)
    step(tokens)                    # forward, backward, clipping, optimizer

Their model files are imported as they are; the optimizer is that of their train.py.
"""

import contextlib
import importlib.util
import os

import numpy as np
import torch

from minigpt.common.errors import UserError

RATES = dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def load_module(path):
    """The Python file `path` as a module. UserError where it is absent or cannot be imported."""
    if not path.is_file():
        raise UserError(f"{path}: not found; expected the folder of a clone in --peers")
    spec = importlib.util.spec_from_file_location(path.parent.name + "_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"{path}: cannot be imported: {error}") from None
    return module


def nanogpt_step(folder, config):
    """A function that takes one step of nanoGPT's GPT of a GPTConfig's shape."""
    theirs = load_module(folder / "model.py")
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    shape = {name: getattr(config, name) for name in names}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        model = theirs.GPT(theirs.GPTConfig(vocab_size=config.padded_vocab_size, **shape))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    return _step(
        model, optimizer, lambda x: model(x[:, :-1].contiguous(), x[:, 1:].contiguous())[1]
    )


def minimind_step(folder, config):
    """A function that takes one step of MiniMind's model of a GPTConfig's shape."""
    theirs = load_module(folder / "model" / "model_minimind.py")
    shape = dict(hidden_size=config.n_embd, num_hidden_layers=config.n_layer)
    shape |= dict(num_attention_heads=config.n_head, num_key_value_heads=config.n_head)
    shape |= dict(intermediate_size=config.n_hidden, vocab_size=config.padded_vocab_size)
    model = theirs.MiniMindForCausalLM(theirs.MiniMindConfig(dropout=0.0, **shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), **RATES)
    return _step(model, optimizer, lambda x: model(input_ids=x, labels=x).loss)


def _step(model, optimizer, loss_of):
    def step(tokens):
        loss = loss_of(torch.from_numpy(tokens.astype(np.int64)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
