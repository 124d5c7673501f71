"""Import of Hugging Face models: GPT-2, Llama, Mistral, Qwen2 and Qwen3 of any size.

    parent = load("hf:gpt2")                      # or "hf:FOLDER": what train.py starts from

The families are in hf_config.py, their tensors in hf_weights.py, the files in weight_files.py, all
beside this one. bfloat16 and float16 become float32. The vocabulary is the source's own
(minigpt/tokenizer/huggingface.py). Missing special tokens (padding, the answer mark, chat marks)
get ids after its last one, and an embedding row each.
"""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn

from minigpt.common.errors import UserError
from minigpt.interop.hf_config import context_length, read_config
from minigpt.interop.hf_weights import from_hf, plan, to_hf
from minigpt.interop.weight_files import (
    PICKLES,
    SAFETENSORS,
    has_safetensors,
    read_shapes,
    read_tensors,
)
from minigpt.models.checkpoint import Checkpoint
from minigpt.tokenizer.huggingface import (
    PREFIX,
    TOKENIZER_FILES,
    read_json,
    read_vocabulary,
    source_folder,
)
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPTConfig

__all__ = ["PREFIX", "from_hf", "load", "to_hf"]


def load(source, block_size=None):
    """The model `source` ("hf:FOLDER" or "hf:NAME") as a Checkpoint of step 0, with `source` as the
    name of its tokenizer.

    block_size: the context length; None: 512, or the source's if that is shorter. UserError if
    files are missing or damaged, or if the architecture is not supported.
    """
    folder = source_folder(source, (*TOKENIZER_FILES, *SAFETENSORS))
    if not has_safetensors(folder):  # of a model on the hub, either is downloaded
        folder = source_folder(source, (*TOKENIZER_FILES, *PICKLES))
    config = read_json(folder / "config.json")
    if block_size is None:
        block_size = min(GPTConfig.block_size, context_length(config) or GPTConfig.block_size)
    try:
        _, family = read_config(config, block_size)
        tokenizer = load_tokenizer(source)
        plan(config, read_shapes(folder), block_size)  # from headers, before tensors are read
        model = from_hf(config, read_tensors(folder), block_size)
    except UserError as error:
        where = "" if str(folder) in str(error) else f"{folder}: "
        raise UserError(f"{where}{error}") from None
    _add_rows(model, read_vocabulary(folder).n_source, tokenizer)
    meta = dict(model=asdict(model.config), settings={"tokenizer": source}, step=0)
    return Checkpoint(Path(source), model, tokenizer, meta | dict(architecture=family))


def _add_rows(model, n_source, tokenizer):
    """Add embedding rows to `model` for every id of the tokenizer, padded to a multiple of 64.

    A new row starts as the mean of the source's rows. Its logit is then an average one, so the
    probabilities of the old ids hardly change; a row of another norm could take most of the
    probability. A little noise makes the new rows differ, so that they get different gradients.
    """
    old = model.config.padded_vocab_size
    size = -(-max(old, tokenizer.n_vocab) // 64) * 64
    # An id after the source's last is new even if its table has a row: that row was never trained.
    fresh = [i for i in range(size) if i >= old or n_source <= i < tokenizer.n_vocab]
    with torch.no_grad():
        tables = [model.wte] if model.config.tie_embeddings else [model.wte, model.lm_head]
        for seed, table in enumerate(tables):
            rows = table.weight[: min(old, n_source)]
            whole = torch.empty(size, rows.size(1))
            whole[:old] = table.weight
            generator = torch.Generator().manual_seed(seed)  # the same in every process
            noise = torch.randn(len(fresh), rows.size(1), generator=generator)
            whole[fresh] = rows.mean(0) + 0.01 * rows.std(0) * noise
            table.weight = nn.Parameter(whole)
    model.wte.num_embeddings = model.lm_head.out_features = size
    if model.config.tie_embeddings:
        model.lm_head.weight = model.wte.weight
    model.config.padded_vocab_size = size
