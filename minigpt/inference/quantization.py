"""Number formats for generation: how a model's weights lie in memory while it writes.

    trained = load("out/sft", "auto", "int8")    # a Checkpoint whose model is ready to write

Writing one token reads every weight once, so the time it takes is the time that memory needs. With
int8 that is a quarter. Each row of activations has a scale of its own (and each row of a matrix),
so what else is in a batch does not change a row's result.
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F

from minigpt.common.errors import ROOT, UserError
from minigpt.common.json_text import parse_json
from minigpt.data.readers import conversation_of
from minigpt.evaluation.perplexity import answer_passages, reply_passages, text_passages
from minigpt.inference.kernels import FEW, build
from minigpt.models import checkpoint
from minigpt.models.device import pick_device, pick_dtype

LARGEST_COST = 0.01  # by which int8 may raise the perplexity
MEASURED = 4096  # tokens on which that is measured


def load(folder, device="auto", dtype="auto", kernels=False):
    """The run in `folder` as a Checkpoint that is ready to write tokens, not to be trained.

    dtype: "int8" (on a CPU), or as in pick_dtype(). kernels: on a CPU, multiply by C++ kernels
    (minigpt/inference/kernels.py). UserError where there is no such run or device, where the
    kernels cannot be built, and where int8 would raise the perplexity by more than LARGEST_COST;
    what it costs is printed.
    """
    device = pick_device(device)
    if kernels and device != "cpu":
        raise UserError(f"kernels=true: they are for a CPU; on {device} leave them out")
    built = build() if kernels else None
    if dtype == "int8":
        return _load_int8(folder, device, built)
    trained = checkpoint.load(folder, device, pick_dtype(dtype, device))
    make_ready(trained.model, built)
    return trained


def _load_int8(folder, device, kernels):
    if device != "cpu":
        raise UserError(f"dtype=int8: made for a CPU; on {device} leave dtype at auto")
    trained = checkpoint.load(folder)
    source, passages = held_out_passages(trained)
    before = perplexity(trained.model, passages)
    quantize(trained.model, kernels)
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
    pairs the answers count, of conversations what the assistant says."""
    paths = Path(trained.meta.get("dataset", "")) / "val.jsonl", ROOT / "data/sample/wiki.jsonl"
    path = next(path for path in paths if path.is_file())
    passages, count = [], 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                passages += _passages(trained.tokenizer, parse_json(line))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UserError(
                    f"{path}:{number}: no entry, pair or conversation as data/prepare*.py write "
                    "them; prepare the data again, or take dtype=float32"
                ) from None
            count += len(passages[-1].ids) if passages else 0
            if count >= MEASURED:
                break
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, passages


def _passages(tokenizer, record):
    """The Passages of a line of val.jsonl. Any of several errors where it is none."""
    if "question" in record:
        return answer_passages(tokenizer, [(record["question"], record["answer"])])
    if "messages" in record:
        return reply_passages(tokenizer, [conversation_of(record, "val.jsonl", 1)])
    return text_passages(tokenizer, [record["text"]])


class Int8Linear(nn.Module):
    """nn.Linear with weights in int8: x (…, n_in) float32 → (…, n_out) float32.

    y = (x̂ · ŵᵀ) s_x s_w + b, where x̂ = round(x / s_x) and s_x = max |x| / 127 of each row, and
    the same for each row of the weights: absmax quantisation (Dettmers et al. 2022).
    """

    def __init__(self, linear, kernels=None):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)  # (n_out, 1)
        q = (weight / scale).round_().to(torch.int8)  # (n_out, n_in)
        self.kernels = kernels if kernels and kernels.has_int8 else None
        self.register_buffer("q", self.kernels.pack(q) if self.kernels else q)
        self.register_buffer("scale", scale[:, 0].contiguous())  # (n_out,)
        self.bias = linear.bias

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        if self.kernels:
            y = self.kernels.linear_int8(rows.contiguous(), self.q, self.scale, self.bias)
        else:
            y = self._by_blas(rows)
        return y.view(*x.shape[:-1], -1)

    def _by_blas(self, rows):
        scale = _scale(rows)  # (N, 1)
        whole = (rows / scale).round_().to(torch.int8)
        if len(rows) == 1:  # as matrix times column a sixth faster, and whole numbers sum alike
            sums = torch._int_mm(self.q, whole.T).T  # (1, n_out) int32
        else:
            sums = torch._int_mm(whole, self.q.T)  # (N, n_out) int32
        y = (sums * scale).mul_(self.scale)
        if self.bias is not None:
            y += self.bias
        return y


class KernelLinear(nn.Module):
    """nn.Linear in float32 whose product with a few rows is left to the kernels."""

    def __init__(self, linear, kernels):
        super().__init__()
        self.weight, self.bias, self.kernels = linear.weight, linear.bias, kernels

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        if len(rows) > FEW:
            return F.linear(x, self.weight, self.bias)
        y = self.kernels.linear(rows.contiguous(), self.weight, self.bias)
        return y.view(*x.shape[:-1], -1)


def _scale(rows):
    """(N, 1): what the largest number of each row (N, K) is 127 of."""
    return rows.abs().amax(dim=1, keepdim=True).div_(127).clamp_(min=1e-30)


def quantize(model, kernels=None):
    """Replace every nn.Linear of `model` by an Int8Linear. The embedding stays as it is."""
    model.kernels = kernels
    _replace(model, lambda linear: Int8Linear(linear, kernels))


def make_ready(model, kernels=None):
    """On a CPU, have the matrices of `model` multiplied as fast as may be. The values stay."""
    if model.wte.weight.device.type != "cpu":
        return
    if kernels:
        model.kernels = kernels
        _replace(model, lambda linear: KernelLinear(linear, kernels))
        return
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.weight.size(0) >= part.weight.size(1):
            # Column by column: BLAS multiplies it with a vector half as fast again.
            part.weight.data = part.weight.data.T.contiguous().T


def _replace(model, make):
    """Put make(linear) in the place of every nn.Linear."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear):
                setattr(module, name, make(part))


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
