"""The recipe for a number of minutes: what a person knows is how long they will wait.

    recipe = choose_recipe(settings, tokenizer, distributed, dtype)    # with --budget_minutes=60

Each shape takes two steps on this machine; with its speed, the minutes give the tokens that it
would see, and LAW the loss that they bring. The shape with the lowest loss is set, and with it the
batch, the rates and the length. bench/dial.py measures LAW. What the user gave as a flag is kept.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from data_utils import Batch, read_meta
from minigpt.common.errors import UserError
from minigpt.data.block_format import TARGET
from minigpt.models.device import autocast
from minigpt.training.losses import next_token
from minigpt.training.optim import make_optimizers
from minigpt.training.planning.fit import largest, recipe
from minigpt.training.planning.memory import Work
from minigpt.training.run_length import MOST_PASSES
from minigpt.training.setup import prepare_command
from model import GPT, GPTConfig

# (n_layer, n_head, n_embd), from the smallest to the largest.
SHAPES = [
    (2, 2, 128),
    (4, 4, 256),
    (6, 6, 384),
    (8, 8, 512),
    (12, 12, 768),
    (24, 16, 1024),
]
HALF_NEW = 15.4  # repetitions after which a text gives nothing more (Muennighoff et al. 2023, R*)
PROBE = 512  # tokens of a timed step; a whole step is proportional to it, but for the optimizer
SMALL, SMALL_RUN = 2048, 2.5e6  # tokens of a step, and of the run that it is best for
FEW_BLOCKS = 8  # in a forward pass, on what is no GPU of CUDA: more are no faster


@dataclass(frozen=True)
class Law:
    """Loss in nats a token = floor + a · parameters^-alpha + b · tokens^-beta (Hoffmann et al.
    2022), of the `zh` vocabulary; other vocabularies have other losses, but the same order."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, n_params, n_tokens):
        """n_tokens: those seen, of text without repetition."""
        return self.floor + self.a * n_params**-self.alpha + self.b * n_tokens**-self.beta


LAW = Law(floor=3.84, a=38.0, alpha=0.34, b=130.8, beta=0.32)


@dataclass(frozen=True)
class Plan:
    """What a shape would do in the minutes. shape: settings by name. tokens: those that it sees;
    step_tokens: of one step of all processes; batch_size: blocks in a forward pass; loss: expected.
    """

    shape: dict
    n_params: int
    tokens: float
    step_tokens: int
    batch_size: int
    loss: float


def choose_recipe(settings, tokenizer, distributed, dtype):
    """Set the recipe for settings.budget_minutes and print it; returns it as the text of a recipe
    file. All processes get the main one's. UserError where no shape fits into the device's memory.
    """
    meta = read_meta(settings.dataset, prepare_command(settings))
    settings.inherit({name: meta[name] for name in ("block_size", "layout")}, settings.dataset)
    n_tokens, n_rows = meta["counts"]["train"]["targets"], tokenizer.padded_vocab_size
    plans = make_plans(settings, n_tokens, n_rows, distributed, dtype)
    plans = distributed.gather(plans)[0]  # by the times of the main process
    if not plans:
        raise UserError("budget_minutes: no shape fits into the device's memory; give --n_embd")
    best = min(plans, key=lambda plan: plan.loss)
    apply(settings, best, n_tokens, distributed)
    text = recipe_text(settings, plans, best, n_tokens)
    if distributed.is_main:
        print(f"chosen by --budget_minutes, and kept as {settings.out_dir}/recipe.py:\n{text}")
    return text


def make_plans(settings, n_tokens, n_rows, distributed, dtype):
    """The Plans of the shapes that this device can train, up to the first that is too large."""
    plans = []
    for shape in _candidates(settings):
        config = _config(settings, shape, n_rows)
        if not batch_that_fits(config, settings, 1, distributed.device, dtype):
            break
        with torch.random.fork_rng(devices=[]):  # the run begins with the weights of its seed
            speed = seconds_of(config, settings, distributed.device, dtype)
        plans.append(plan_for(shape, config, settings, n_tokens, *speed, distributed, dtype))
        if plans[-1].loss > min(plan.loss for plan in plans):
            break  # larger ones would see too few tokens
    return plans


def _candidates(settings):
    """The shapes to try: all, or that of the settings if the user gave a part of it by flags."""
    names = ("n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "n_hidden")
    if any(settings.origin(name) == f"--{name}" for name in names):
        return [{name: getattr(settings, name) for name in names}]
    return [dict.fromkeys(names) | dict(zip(names, shape, strict=False)) for shape in SHAPES]


def _config(settings, shape, n_rows):
    values = settings.as_dict() | shape
    fields = {name: values[name] for name in GPTConfig.__dataclass_fields__ if name in values}
    config = GPTConfig(padded_vocab_size=n_rows, **fields)
    if config.problems():
        raise UserError("\n".join(config.problems()))
    return config


def batch_that_fits(config, settings, blocks, device, dtype):
    """The largest batch for steps of so many blocks on this process; 0 if no block fits."""
    if not device.startswith("cuda"):
        return min(blocks, FEW_BLOCKS)
    with torch.device("meta"):
        model = GPT(config)
    low_precision = dtype != torch.float32
    work = Work(
        batch_size=1,
        optimizer=settings.optimizer,
        muon_float32=dtype != torch.bfloat16,
        low_precision=low_precision,
        on_gpu=True,
        masked=True,  # at most
    )
    fit = largest(model, work, blocks, torch.cuda.mem_get_info(device)[0])
    return fit.work.batch_size if fit else 0


def seconds_of(config, settings, device, dtype):
    """(seconds a token of forward and backward, seconds of an optimizer's step), the second try."""
    model = GPT(config).to(device)
    optimizers = make_optimizers(model, settings, device)
    length = min(PROBE, config.block_size)
    tokens = np.random.default_rng(0).integers(0, 256, (max(1, PROBE // length), length))
    batch = Batch.of(tokens, np.full(tokens.shape, TARGET, np.uint8), isolated=False).to(device)
    for _ in range(2):
        start = _now(device)
        with autocast(device, dtype):
            total, count = next_token(model, batch)
        (total / count).backward()
        middle = _now(device)
        for optimizer in optimizers:
            optimizer.step()
        end = _now(device)
        model.zero_grad(set_to_none=True)
    return (middle - start) / tokens.size, end - middle


def _now(device):
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def plan_for(shape, config, settings, n_tokens, per_token, per_step, distributed, dtype):
    """The Plan of a shape that takes so many seconds for a token and for an optimizer's step."""
    with torch.device("meta"):
        n_params = GPT(config).n_params()
    seconds, step_tokens, world = 60 * settings.budget_minutes, SMALL, distributed.world_size
    for _ in range(4):  # the length gives the batch, the batch the length
        seen = seconds / (per_token / world + per_step / step_tokens)
        seen = min(seen, MOST_PASSES * n_tokens)
        step_tokens = SMALL * 2 ** max(0, round(math.log2(seen / SMALL_RUN) / 2))
    blocks = max(1, step_tokens // config.block_size // world)
    batch_size = batch_that_fits(config, settings, blocks, distributed.device, dtype)
    loss = LAW.loss(n_params, worth(seen, n_tokens))
    step_tokens = blocks * config.block_size * world
    return Plan(shape, n_params, seen, step_tokens, batch_size, loss)


def worth(seen, unique):
    """How many tokens of new text are worth `seen` tokens of a text of `unique` ones."""
    repeated = max(0.0, seen / unique - 1)
    return min(seen, unique) * (1 + HALF_NEW * (1 - math.exp(-repeated / HALF_NEW)))


def apply(settings, plan, n_tokens, distributed):
    """Set what a Plan means, but for what the user gave as flags."""
    blocks = plan.step_tokens // settings.block_size // distributed.world_size
    is_short = plan.tokens < 20 * SMALL_RUN
    ratio = 8 * (plan.tokens / SMALL_RUN) ** -0.33  # a short run learns mostly in its embeddings
    most = min(1.5 * plan.tokens, MOST_PASSES * n_tokens)  # it may turn out faster than measured
    values = plan.shape | dict(
        batch_size=plan.batch_size,
        gradient_accumulation_steps=blocks // plan.batch_size,
        max_minutes=settings.budget_minutes,
        max_iters=max(1, math.ceil(most / plan.step_tokens)),
        learning_rate=float(f"{2e-3 * (256 / plan.shape['n_embd']) ** 0.63:.2g}"),
        embedding_lr_ratio=float(f"{min(8.0, max(1.0, ratio)):.2g}"),
        warmup_iters=20 if is_short else 200,
        beta2=0.99 if is_short else 0.95,
        muon_momentum=0.9 if is_short else 0.95,
        eval_interval=max(50, round(plan.tokens / plan.step_tokens / 10)),
    )
    for name, value in values.items():
        if settings.origin(name) != f"--{name}":
            settings.set(name, value, "budget_minutes")


def recipe_text(settings, plans, best, n_tokens):
    """The chosen recipe, with why, as a file that train.py reads."""
    lines = [f"For {settings.budget_minutes:g} minutes here and {n_tokens:,} tokens of text.", ""]
    for plan in plans:
        lines.append(
            f"{plan.shape['n_layer']} layers of width {plan.shape['n_embd']} "
            f"({plan.n_params / 1e6:.1f}M): {plan.tokens / 1e6:.2f}M tokens, "
            f"{plan.tokens / n_tokens:.1f} passes, expected loss {plan.loss:.2f}"
            + (" ← chosen" if plan is best else "")
        )
    # A recipe is for another run: it plans nothing, and deletes nothing.
    return recipe(settings, dict(budget_minutes=None, overwrite=None), "\n".join(lines))
