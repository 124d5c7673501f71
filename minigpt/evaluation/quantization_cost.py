"""The cost of int8 and int4: a run's perplexity on held-out text, before and after.

    trained = load_for_generation("out/sft", "auto", "int8")

Whoever loads a run to generate with it loads it here: what costs too much is refused.
"""

import math
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from minigpt.common.errors import ROOT, UserError
from minigpt.common.json_text import parse_json
from minigpt.data.formats import parse_chat
from minigpt.evaluation.perplexity import answer_passages, reply_passages, text_passages
from minigpt.inference import backends
from minigpt.models import checkpoint
from minigpt.models.device import pick_dtype

LARGEST_COST = {"int8": 0.01, "int4": 0.1}  # by what fraction it may raise the perplexity
MEASURED = 4096  # tokens on which it is measured


def load_for_generation(folder, device="auto", dtype="auto", kernels="auto"):
    """The run in `folder` as a Checkpoint that is ready to generate, not to be trained.

    dtype: "int8" or "int4" (on a CPU), or as in pick_dtype(). kernels: see
    minigpt/inference/backends.py. For int8 and int4 the backend and the cost in perplexity are
    printed to stderr; where they are slower than float32, float32 is used. UserError if there is no
    such run or device, if the kernels cannot be built, and if the perplexity rises by more than
    LARGEST_COST.
    """
    device, built = backends.pick_kernels(device, dtype, kernels)
    if dtype not in LARGEST_COST:
        trained = checkpoint.load(folder, device, pick_dtype(dtype, device))
        if device == "cpu":
            choice = backends.choose(trained.model, "float32", kernels, built)
            backends.convert(trained.model, choice)
        return trained
    trained = checkpoint.load(folder)
    choice = backends.choose(trained.model, dtype, kernels, built)
    if choice.dtype == dtype:
        print(f"{folder} in {choice}", file=sys.stderr)
        quantize(trained, choice, folder)
        return trained
    named = "fbgemm or int_mm" if dtype == "int8" else "true"
    print(
        f"{folder} in {choice}: {dtype} is slower here and not used; kernels={named} takes it all "
        "the same",
        file=sys.stderr,
    )
    backends.convert(trained.model, choice)
    return trained


def quantize(trained, choice, folder):
    """Convert the model and print what that costs in perplexity; UserError if it is too much."""
    source, passages = held_out_passages(trained)
    before = perplexity(trained.model, passages)
    backends.convert(trained.model, choice)
    after = perplexity(trained.model, passages)
    cost = f"perplexity {before:.3f} → {after:.3f} ({after / before - 1:+.2%})"
    most, better = LARGEST_COST[choice.dtype], {"int8": "float32", "int4": "int8"}[choice.dtype]
    if not after <= before * (1 + most):
        raise UserError(
            f"dtype={choice.dtype}: {folder}: {cost} on {source}; at most {most:+.0%} is allowed: "
            f"take dtype={better}"
        )
    print(
        f"{folder} in {choice.dtype}: {cost} on {len(passages)} texts of {source}", file=sys.stderr
    )


def held_out_passages(trained):
    """(source, Passages), MEASURED tokens or a few more: of the run's held-out entries, or of the
    bundled sample if the run's dataset is not on this machine. Of question-answer pairs the answers
    count, of conversations the assistant's turns."""
    paths = Path(trained.meta.get("dataset", "")) / "val.jsonl", ROOT / "data/sample/wiki.jsonl"
    path = next(path for path in paths if path.is_file())
    passages, count = [], 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                passages += _passages(trained, parse_json(line))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UserError(
                    f"{path}:{number}: no entry, pair or conversation as data/prepare*.py write "
                    "them; prepare the data again, or take dtype=float32"
                ) from None
            count += len(passages[-1].ids) if passages else 0
            if count >= MEASURED:
                break
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, passages


def _passages(trained, record):
    """The Passages of a line of val.jsonl. A wrong line raises any of several errors."""
    tokenizer = trained.tokenizer
    if "question" in record:
        return answer_passages(tokenizer, [(record["question"], record["answer"])])
    if "messages" in record:
        return reply_passages(tokenizer, [parse_chat(record)], trained.prompt_format)
    return text_passages(tokenizer, [record["text"]])


@torch.inference_mode()
def perplexity(model, passages):
    """Perplexity per token over the Passages, each cut at the model's block_size."""
    model.eval()
    nats = count = 0
    for passage in passages:
        ids = torch.from_numpy(passage.ids[: model.config.block_size])
        first = max(1, passage.first)  # token 0 has no context
        if len(ids) > first:
            logits = model.logits(model(ids[None, :-1])[0, first - 1 :]).float()
            nats += float(F.cross_entropy(logits, ids[first:], reduction="sum"))
            count += len(ids) - first
    return math.exp(nats / count)
