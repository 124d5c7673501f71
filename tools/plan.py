"""Plan a training run before money is spent: memory, time, data, and the recipe that fits.

    python tools/plan.py config/train_config.py --gpu=4090
    python tools/plan.py --n_layer=24 --n_embd=2048 --gpus=8 --gpu_memory=24 --gpu=4090
    python tools/plan.py --n_layer=24 --n_embd=2048 --gpus=8 --gpu=4090 --output=out/1b.py
    python tools/plan.py config/cpu_small.py --device=cpu --gpu_memory=8 --tflops=0.1

It takes the recipes and settings of train.py, and computes: nothing is trained, no GPU is needed.
It prints what a GPU holds by part, with DDP (each GPU has the whole model) and FSDP (they share
it), with and without activation checkpointing; tokens a second and days; and a recipe with the
largest batches that fit, whose steps have as many tokens as those of the settings. FSDP and
activation checkpointing are chosen where nothing else fits, or where you ask for them.

Memory is computed for eager PyTorch (minigpt/training/planning/memory.py). Time is --mfu of the
peak in the card's data sheet: an assumption. Measure it with bench/gpu.py.
"""

import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.training.settings import check_ranges


class Settings:
    gpus: int = 1  # in all machines
    gpu: str = ""  # the card, such as 4090, a100 or h100
    gpu_memory: float | None = None  # GB of a card; none: the smaller one that is sold
    tflops: float | None = None  # peak of a card in bfloat16, TFLOP/s; none: of its data sheet
    mfu: float = 0.35  # model FLOPs utilization: the share of the peak that is reached
    tokens: float | None = None  # to train on; none: 20 for each parameter (Hoffmann et al. 2022)
    vocab_size: int | None = None  # tokens of a vocabulary yet to be trained; none: `tokenizer`'s
    output: str = ""  # write the recipe to this file; "": only print it


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="all", doc=__doc__, quiet=True)
    fit_heads(settings)
    check_ranges(settings)
    problems = settings.below(gpus=1, vocab_size=1)
    for name in ("gpu_memory", "tflops", "tokens"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            problems.append(f"--{name}={value:g}: expected more than 0")
    if not 0 < settings.mfu <= 1:
        problems.append(f"--mfu={settings.mfu:g}: expected more than 0, up to 1")
    if not settings.gpu and None in (settings.tflops, settings.gpu_memory):
        problems.append("--gpu: which card? such as --gpu=4090; or give --tflops and --gpu_memory")
    # Their memory is another: a reference model, answers, adapters beside frozen weights.
    if settings.stage != "lm" or settings.lora_rank:
        origin = settings.origin("lora_rank" if settings.stage == "lm" else "stage")
        problems.append(f"{origin}: a plan is only for stage=lm without LoRA")
    if settings.init_from.startswith("hf:"):
        problems.append(
            f"{settings.origin('init_from')}: init_from={settings.init_from}: make it a run first "
            "(train.py with --max_iters=0), and give its folder"
        )
    if settings.dtype == "float32" and settings.tflops is None:
        problems.append("dtype=float32: data sheets have the peak of bfloat16: give --tflops")
    if settings.output and not settings.output.endswith(".py"):
        problems.append(f"--output={settings.output}: expected a recipe, FILE.py")
    if problems:
        raise UserError("\n".join(problems))
    return settings


def fit_heads(settings):
    """Choose n_head where n_embd alone is given, and the default does not divide it: heads of 64
    channels, as the default's, if they do."""
    fixed = [name for name in ("n_head", "head_dim") if settings.origin(name) != "default"]
    is_given = fixed or settings.init_from != "scratch"
    width, heads = settings.n_embd, settings.n_head
    if not is_given and width > 0 and width % (2 * heads):
        for unit in (64, 128, 32):
            if width % unit == 0:
                settings.set("n_head", width // unit, f"heads of {unit} channels")
                break


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from dataclasses import replace
from pathlib import Path

import torch

from minigpt.common import report
from minigpt.common.scripts import typed
from minigpt.models import checkpoint
from minigpt.models.device import CARDS, Card, find_card
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.planning.fit import (
    RESERVED,
    best_fit,
    gpus_that_fit,
    largest,
    recipe,
    tokens_per_second,
    ways,
)
from minigpt.training.planning.memory import Work, memory_of_step
from minigpt.training.settings import inherit_settings
from minigpt.training.setup import freeze
from model import GPT, GPTConfig

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022: the most for a given amount of compute
GPUS_OF_A_MACHINE = 8
SIZES = (24, 32, 40, 48, 80, 96, 141, 180)  # GB of cards


def main():
    settings = read_settings()
    card, model = card_of(settings), shape_of(settings)
    work, limit = work_of(settings, card), 1e9 * card.gigabytes - RESERVED
    blocks = settings.batch_size * settings.gradient_accumulation_steps
    allowed = [way for way in ways(work) if is_asked_for(settings, way)]
    fit = best_fit(model, allowed, blocks, limit)

    print(settings.describe())
    print(model_line(model))
    shown = replace(work, batch_size=fit.work.batch_size if fit else 1)
    print(memory_table(model, shown, blocks, limit), flush=True)
    if fit is None:
        raise UserError(what_would_fit(model, allowed[-1], limit, card))
    rate = tokens_per_second(model, fit.work, card.tflops, settings.mfu)
    tokens = settings.tokens or TOKENS_PER_PARAMETER * model.n_params()
    tokens_per_step = fit.blocks_per_step * model.config.block_size
    print("\n".join(time_lines(settings, card, rate, tokens)))
    if fit.blocks_per_step != blocks:
        print(
            f"note: {settings.gpus} GPUs cannot share the {blocks} blocks of the recipe's step "
            f"evenly: a step has {fit.blocks_per_step}"
        )
    text = recipe_text(settings, fit, math.ceil(tokens / tokens_per_step))
    print(f"\nthe recipe that fits:\n\n{text}")
    if settings.output:
        report.write_text(settings.output, text)
        print(f"written to {settings.output}")


# -- from settings ---------------------------------------------------------------------------------


def card_of(settings):
    """The Card of the settings. UserError for an unknown one without its figures."""
    card = find_card(settings.gpu) if settings.gpu else None
    given = settings.tflops, settings.gpu_memory
    if card is None and None in given:
        raise UserError(
            f"--gpu={settings.gpu}: unknown; give its --tflops and --gpu_memory, or one of "
            f"{', '.join(CARDS)}"
        )
    card = card or Card(*given)
    return Card(settings.tflops or card.tflops, settings.gpu_memory or card.gigabytes, *card[2:])


def shape_of(settings):
    """The model of the settings, on the meta device. UserError for an impossible shape."""
    if settings.init_from == "scratch":
        n_rows = -(-settings.vocab_size // 64) * 64 if settings.vocab_size else None
        n_rows = n_rows or load_tokenizer(settings.tokenizer).padded_vocab_size
        knobs = settings.as_dict()
        shape = {name: knobs[name] for name in GPTConfig.__dataclass_fields__ if name in knobs}
        config = GPTConfig(n_rows, **shape)
    else:
        is_resumed = settings.init_from == "resume"
        folder = Path(settings.out_dir if is_resumed else settings.init_from)
        meta = checkpoint.read_meta(folder)
        inherit_settings(settings, checkpoint.Checkpoint(folder, None, None, meta), is_resumed)
        config = replace(GPTConfig(**meta["model"]), dropout=settings.dropout)
    if config.problems():
        raise UserError("\n".join(config.problems()))
    with torch.device("meta"):
        model = GPT(config)
    freeze(model, settings)
    return model


def work_of(settings, card):
    """The Work of one of the GPUs, with batches of one block."""
    on_gpu = settings.device != "cpu"
    low_precision = on_gpu and settings.dtype != "float32"
    # As choose_attention() of setup.py: PyTorch's kernel for segments has no dropout.
    has_kernel = (
        card.bfloat16 and low_precision and not (settings.dropout or settings.deterministic)
    )
    return Work(
        batch_size=1,
        optimizer=settings.optimizer,
        muon_float32=not card.bfloat16,
        low_precision=low_precision,
        on_gpu=on_gpu,
        masked=settings.layout == "concat" and settings.isolate and not has_kernel,
        processes=settings.gpus,
    )


def is_asked_for(settings, way):
    """Whether the settings leave this way open: what they ask for is kept."""
    wants = {"activation_checkpointing": way.activation_checkpointing}
    if way.processes > 1:
        wants["parallel"] = "fsdp" if way.sharded else "ddp"
    return all(
        settings.origin(name) == "default" or settings.as_dict()[name] == value
        for name, value in wants.items()
    )


# -- what is printed -------------------------------------------------------------------------------


def model_line(model):
    config = model.config
    return (
        f"model: {model.n_params() / 1e6:,.1f}M parameters: {config.n_layer} blocks of "
        f"{config.n_embd} channels in {config.n_head} heads, a vocabulary of "
        f"{config.padded_vocab_size:,}\n"
    )


def memory_table(model, work, blocks, limit):
    """What each way needs in batches of `work`, and the largest batches that fit."""
    header = ["", "weights", "gradients", "optimizer", "gathered", "activations", "loss"]
    header += ["start", "backward", "step", "peak", "largest batch"]
    rows = []
    for way in ways(work):
        needs = memory_of_step(model, replace(way, accumulates=True))
        fit = largest(model, way, blocks, limit)
        rows.append(
            [way_name(way)]
            + [f"{getattr(needs, name) / 1e9:.2f}" for name in header[1:-1]]
            + [fit.work.batch_size if fit else "does not fit"]
        )
    return (
        f"memory of a GPU in GB, of which {limit / 1e9:g} are free; batches of {work.batch_size} × "
        f"{model.config.block_size} tokens\n" + report.table(header, rows) + "\n"
    )


def way_name(way):
    parallel = ("fsdp" if way.sharded else "ddp") if way.processes > 1 else "one GPU"
    return parallel + ", activation checkpointing" * way.activation_checkpointing


def what_would_fit(model, way, limit, card):
    """The message where nothing fits."""
    least = memory_of_step(model, replace(way, batch_size=1, accumulates=way.processes == 1)).peak
    size = next(
        (size for size in SIZES if size > card.gigabytes and least <= 1e9 * size - RESERVED), 0
    )
    n_gpus = gpus_that_fit(model, way, limit)
    remedies = [f"cards of {size} GB"] * bool(size)
    remedies += [f"{n_gpus} such GPUs with --parallel=fsdp"] * bool(n_gpus)
    remedies += ["fewer --n_layer or --n_embd, or a smaller --block_size"]
    return (
        f"nothing fits: one block of {model.config.block_size} tokens takes {least / 1e9:.1f} GB, "
        f"of which {limit / 1e9:g} are free, with {way_name(way)}; what would: "
        f"{'; or '.join(remedies)}"
    )


def time_lines(settings, card, rate, tokens):
    """Lines about speed, time and data."""
    name = settings.gpu or "GPU"
    source = "--tflops" if settings.tflops else "data sheet"
    why = "--tokens" if settings.tokens else f"{TOKENS_PER_PARAMETER} a parameter"
    wide = 2  # bytes of a token id, and one of the mask
    return [
        f"speed: {rate:,.0f} tokens/s, if {settings.gpus} × {name} reach {settings.mfu:.0%} of "
        f"{card.tflops:g} TFLOP/s ({source}): an assumption",
        f"time: {tokens / 1e9:,.1f} billion tokens ({why}) take {report.duration(tokens / rate)}",
        f"data: {wide * tokens / 1e9:,.1f} GB of tokens (uint16) and {tokens / 1e9:,.1f} GB of "
        "masks, if each is read once",
    ]


def recipe_text(settings, fit, max_iters):
    """The recipe of a Fit: the settings, with what was planned."""
    where = settings.output or "RECIPE.py"
    n = settings.gpus
    launcher = f"torchrun --nproc_per_node={n} "
    if n > GPUS_OF_A_MACHINE:
        launcher = f"torchrun --nnodes={-(-n // GPUS_OF_A_MACHINE)} --nproc_per_node=8 … "
    command = f"{launcher}train.py {where}" if n > 1 else typed("train.py", where)
    title = (
        f"Planned for {n} × {settings.gpu or 'GPU'}: {fit.needs.peak / 1e9:.1f} GB of a GPU.\n\n"
        f"    {command}"
    )
    changes = dict(
        batch_size=fit.work.batch_size,
        gradient_accumulation_steps=fit.accumulation,
        activation_checkpointing=fit.work.activation_checkpointing or None,
        parallel="fsdp" if fit.work.sharded else None,
        max_iters=max_iters,
    )
    if settings.epochs is not None:  # the length of fine-tuning
        del changes["max_iters"]
    own = dict.fromkeys(Settings.__annotations__)
    return recipe(settings, changes | own, title)


if __name__ == "__main__":
    run(main)
