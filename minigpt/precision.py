"""Number formats for generation: how a model's weights lie in memory while it writes.

    trained = load("out/sft", "auto", "int8")    # a Checkpoint whose model is ready to write

Writing one token reads every weight once, so the time it takes is the time that memory needs. With
int8 that is a quarter. Each row of activations has a scale of its own (and each row of a matrix),
so what else is in a batch does not change a row's result.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F

from config.configurator import ROOT, UserError
from minigpt import checkpoint
from minigpt.hardware import pick_device, pick_dtype
from minigpt.perplexity import answer_passages, text_passages

LARGEST_COST = 0.01  # by which int8 may raise the perplexity
MEASURED = 4096  # tokens on which that is measured


def load(folder, device="auto", dtype="auto", compile=False):
    """The run in `folder` as a Checkpoint that is ready to write tokens, not to be trained.

    dtype: "int8" (on a CPU), or as in pick_dtype(). compile: fuse what lies between the matrices
    (torch.compile, block by block, so that the first tokens wait for seconds, not minutes); a CPU
    needs a C++ compiler for it. UserError where there is no such run or device,
    and where int8 would raise the perplexity by more than LARGEST_COST; what it costs is printed.
    """
    device = pick_device(device)
    if dtype == "int8":
        trained = _load_int8(folder, device)
    else:
        trained = checkpoint.load(folder, device, pick_dtype(dtype, device))
        lay_out(trained.model)
    if compile:
        for block in trained.model.blocks:
            block.compile(dynamic=True)
    return trained


def _load_int8(folder, device):
    if device != "cpu":
        raise UserError(f"dtype=int8: made for a CPU; on {device} leave dtype at auto")
    trained = checkpoint.load(folder)
    source, passages = held_out_passages(trained)
    before = perplexity(trained.model, passages)
    quantize(trained.model)
    after = perplexity(trained.model, passages)
    cost = f"perplexity {before:.3f} → {after:.3f} ({after / before - 1:+.2%})"
    if not after <= before * (1 + LARGEST_COST):
        raise UserError(
            f"dtype=int8: {folder}: {cost} on {source}; at most {LARGEST_COST:+.0%} is allowed: "
            "take dtype=float32"
        )
    print(f"{folder} in int8: {cost} on {len(passages)} texts of {source}", file=sys.stderr)
    return trained


def held_out_passages(trained):
    """(where they are from, Passages) for a measurement, MEASURED tokens or a few more: of the
    run's held-out entries, or of the bundled sample where its dataset is not on this machine. Of
    pairs the answers count."""
    paths = Path(trained.meta.get("dataset", "")) / "val.jsonl", ROOT / "data/sample/wiki.jsonl"
    path = next(path for path in paths if path.is_file())
    passages, count = [], 0
    with open(path, encoding="utf-8") as file:
        for record in map(json.loads, file):
            if "question" in record:
                pair = record["question"], record["answer"]
                passages += answer_passages(trained.tokenizer, [pair])
            else:
                passages += text_passages(trained.tokenizer, [record["text"]])
            count += len(passages[-1].ids)
            if count >= MEASURED:
                break
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, passages


class Int8Linear(nn.Module):
    """nn.Linear with weights in int8: x (…, n_in) float32 → (…, n_out) float32.

    y = (x̂ · ŵᵀ) s_x s_w + b, where x̂ = round(x / s_x) and s_x = max |x| / 127 of each row, and
    the same for each row of the weights: absmax quantisation (Dettmers et al. 2022).
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)  # (n_out, 1)
        self.register_buffer("q", (weight / scale).round_().to(torch.int8))  # (n_out, n_in)
        self.register_buffer("scale", scale.T.contiguous())  # (1, n_out)
        self.bias = linear.bias
        if hasattr(linear, "split"):
            self.split = linear.split

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        scale = _scale(rows)  # (N, 1)
        sums = _whole_product((rows / scale).round_().to(torch.int8), self.q)  # (N, n_out) int32
        y = (sums * scale).mul_(self.scale)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


def _whole_product(x, q):
    """x · qᵀ of int8 (N, K) and (n_out, K) as int32 (N, n_out)."""
    # One row is faster as a column, by a sixth. Compiled it must not be one: of _int_mm with one
    # column PyTorch 2.13 makes a sum in int8, which overflows.
    if len(x) == 1 and not torch.compiler.is_compiling():
        return torch._int_mm(q, x.T).T
    return torch._int_mm(x, q.T)


def _scale(rows):
    """(N, 1): what the largest number of each row (N, K) is 127 of."""
    return rows.abs().amax(dim=1, keepdim=True).div_(127).clamp_(min=1e-30)


def quantize(model):
    """Replace every nn.Linear of `model` by an Int8Linear. The embedding stays as it is."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear):
                setattr(module, name, Int8Linear(part))


def lay_out(model):
    """On a CPU, store each wide matrix column by column: BLAS then multiplies it with a vector half
    as fast again (bench/decode.py). The values stay as they are."""
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.weight.device.type == "cpu":
            n_out, n_in = part.weight.shape
            if n_out >= n_in:
                part.weight.data = part.weight.data.T.contiguous().T


@torch.inference_mode()
def perplexity(model, passages):
    """Perplexity a token over the Passages, each as far as the model's block reaches."""
    model.eval()
    nats = count = 0
    for passage in passages:
        ids = torch.from_numpy(passage.ids[: model.config.block_size])
        first = max(1, passage.first)  # nothing stands before token 0
        if len(ids) > first:
            logits = model.logits(model(ids[None, :-1])[0, first - 1 :]).float()
            nats += float(F.cross_entropy(logits, ids[first:], reduction="sum"))
            count += len(ids) - first
    return math.exp(nats / count)
