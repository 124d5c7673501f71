"""Tiny runs and datasets for the tests of what uses them: saved and read by the real code. And
scripts, run without the seconds that a new process takes."""

import contextlib
import io
import itertools
import json
import runpy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from data_utils import IS_START, TARGET
from minigpt.models import checkpoint
from minigpt.tokenizer.chat_template import to_json
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent


def save_run(folder, model, tokenizer, prompt_format="plain", dataset="nowhere"):
    """Save `model` as a trained run; returns the folder."""
    meta = dict(**to_json(prompt_format), step=7, dataset=str(dataset), settings={})
    checkpoint.save(folder, model, tokenizer, meta)
    return folder


def save_scripted_run(
    folder, tokenizer, answer, prompt_format="qa", dataset="nowhere", cycle=False, block_size=32
):
    """A run that writes `answer` after the answer mark (qa) or after 。 (plain), then EOT; with
    `cycle` it begins again instead, for ever."""
    first = tokenizer.answer_mark if prompt_format == "qa" else tokenizer.encode("。")[-1]
    ids = tokenizer.encode(answer)
    chain = [first, *ids, ids[0] if cycle else tokenizer.eot]
    model = _scripted_model(tokenizer.padded_vocab_size, chain, block_size)
    return save_run(folder, model, tokenizer, prompt_format, dataset)


def _scripted_model(n_rows, chain, block_size):
    """A model that follows each id of `chain` by the next one: its blocks add nothing, and the
    output layer looks only at the present token's own direction."""
    assert len(set(chain[:-1])) == len(chain) - 1, "an id can have only one successor"
    width = 2 * len(chain)
    shape = dict(n_layer=1, n_head=1, n_embd=width, tie_embeddings=False)
    model = GPT(GPTConfig(n_rows, block_size, **shape))
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()
        model.blocks[0].mlp.proj.weight.zero_()
        model.wte.weight.zero_()
        model.lm_head.weight.zero_()
        for direction, (token, following) in enumerate(itertools.pairwise(chain)):
            model.wte.weight[token, direction] = 1
            model.lm_head.weight[following, direction] = 10
    return model


def pack(tokenizer, rows, block_size=32):
    """(tokens, mask) of rows, a row a list of (ids, first): a piece and the first of its ids that
    is a target. PAD fills each row."""
    tokens = np.full((len(rows), block_size), tokenizer.pad)
    mask = np.zeros((len(rows), block_size), np.uint8)
    for row, pieces in enumerate(rows):
        at = 0
        for ids, first in pieces:
            tokens[row, at : at + len(ids)] = ids
            mask[row, at] = IS_START
            mask[row, at + first : at + len(ids)] = TARGET
            at += len(ids)
        if at < block_size:
            mask[row, at] = IS_START
    return tokens, mask


def write_jsonl(path, records):
    """Write records, one a line; returns the path."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def run_here(script, *words, lines=""):
    """Run a script of the project in this process, `lines` on its stdin, which is no terminal:
    (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", [script, *map(str, words)]),
        mock.patch.object(sys, "stdin", io.StringIO(lines)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()
