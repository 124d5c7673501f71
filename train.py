"""Train: settings → data → model → optimizer → loop. One loop for pretraining and fine-tuning.

    python train.py config/train_config.py                 # pretrain
    python train.py config/train_config_sft.py             # fine-tune what that made
    python train.py config/cpu_small.py --max_minutes=20   # on a laptop
    python train.py --out_dir=out/pretrain --init_from=resume
    torchrun --nproc_per_node=4 train.py config/train_config.py

The run's folder then holds the last checkpoint, best/ (lowest val loss), log.jsonl and samples.txt.
"""

import contextlib
import json
import math
import os
import re
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from config.configurator import configure
from data_utils import Batches, Blocks, evaluation_batches, read_meta
from minigpt.common.errors import UserError, run
from minigpt.common.files import written_whole
from minigpt.common.report import check_writable, duration, write_text
from minigpt.data.prompts import stop_ids
from minigpt.evaluation.examples import Example, example_ids, first_held_out
from minigpt.inference.engine import Engine, Request
from minigpt.interop import hf_import
from minigpt.models import checkpoint
from minigpt.models.device import (
    autocast,
    matmul_flops,
    peak_flops,
    pick_device,
    pick_dtype,
)
from minigpt.models.lora import LoRA, attach
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.dpo import DPO, Pairs, add_reference
from minigpt.training.log import STOPPED
from minigpt.training.losses import next_token, total_loss
from minigpt.training.optim import lr_scale, make_optimizers, set_lr
from model import GPT, GPTConfig, has_varlen_attention

# What a checkpoint fixes for any run that starts from it, and what resuming fixes besides.
SHAPE = [
    name for name in GPTConfig.__dataclass_fields__ if name not in ("padded_vocab_size", "dropout")
]
ORDER = ["dataset", "seed", "if_trav", "batch_size", "gradient_accumulation_steps", "optimizer"]
ORDER += ["val_dataset", "isolate", "freeze_layers", "freeze_embeddings"]
ORDER += ["lora_rank", "lora_alpha", "lora_dropout", "lora_targets"]
ORDER += ["stage", "dpo_beta", "dpo_average", "dpo_label_smoothing", "dpo_guard_dataset"]


def main():
    # -- settings: one process, or one of several under torchrun -----------------------------------
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    first = rank == 0
    settings = configure(shared="all", doc=__doc__, quiet=True)
    check_ranges(settings)
    out_dir = Path(settings.out_dir)

    # -- what the run starts from --------------------------------------------------------------
    resume, parent = settings.init_from == "resume", None
    if resume:
        hint = f"python train.py --dataset={settings.dataset}"
        parent = checkpoint.load(out_dir, hint=hint, merged=False)
        adopt(settings, parent, SHAPE + ["tokenizer"] + ORDER)
        now = settings.as_dict()
        for name, value in parent.meta["settings"].items():
            if name in now and settings.origin(name) == "default" and value != now[name]:
                settings.set(name, value, f"resumed from {out_dir}")
        settings.set("init_from", "resume", "--init_from")
        state = checkpoint.load_state(out_dir)
        share_steps(settings, state["world"], world)
    elif checkpoint.exists(out_dir) and not settings.overwrite:
        raise UserError(
            f"{out_dir}: already holds a run; go on with --init_from=resume, keep it with another "
            f"--out_dir, or throw it away with --overwrite=true"
        )
    elif settings.init_from.startswith(hf_import.PREFIX):
        parent = take_over(settings)
        adopt(settings, parent, SHAPE + ["tokenizer"])
    elif settings.init_from != "scratch":
        start = Path(settings.init_from)
        if start.resolve() in (out_dir.resolve(), out_dir.resolve() / "best"):
            raise UserError(
                f"{out_dir}: overwriting it would throw away {start}, from which the run starts; "
                f"choose another --out_dir"
            )
        parent = checkpoint.load(start)
        adopt(settings, parent, SHAPE + ["tokenizer"])
    if settings.origin("max_iters") == "--max_iters" and settings.origin("epochs") != "--epochs":
        settings.set("epochs", None, "--max_iters")  # a length said by hand goes before a recipe's
    if first:
        print(settings.describe())

    # -- the machine -------------------------------------------------------------------------------
    device = pick_device(settings.device)
    if world > 1 and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    torch.manual_seed(settings.seed)  # all processes start from the same weights
    dtype = pick_dtype(settings.dtype, device)

    # -- data --------------------------------------------------------------------------------------
    tokenizer = parent.tokenizer if parent else load_tokenizer(settings.tokenizer)
    size = settings.block_size
    kind = Pairs if settings.stage == "dpo" else Blocks
    train_blocks = kind(settings.dataset, "train", tokenizer, size, settings.isolate)
    val_blocks = kind(settings.val_dataset or settings.dataset, "val", tokenizer, size)
    guard_blocks = None
    if settings.dpo_guard_dataset:
        make = f"python data/prepare_sft.py --block_size={size} --input=PAIRS"
        read_meta(settings.dpo_guard_dataset, make)  # which says how to make it
        guard_blocks = Blocks(settings.dpo_guard_dataset, "val", tokenizer, size)
    prompt_format = train_blocks.meta["prompt_format"]
    settings.inherit({"layout": train_blocks.meta["layout"]}, settings.dataset)
    accumulation = settings.gradient_accumulation_steps
    batches = Batches(
        train_blocks,
        settings.batch_size,
        settings.seed,
        settings.if_trav,
        rank,
        world,
        device,
        prefetch=accumulation,
    )
    if settings.epochs is not None:
        steps = math.ceil(settings.epochs * batches.per_epoch / accumulation)
        settings.set("max_iters", max(1, steps), f"epochs={settings.epochs:g}")
    tokens_per_step = settings.batch_size * train_blocks.tokens_per_block * accumulation * world

    # -- model and optimizer -----------------------------------------------------------------------
    if parent:
        model = parent.model
        model.config.dropout = settings.dropout
    else:
        shape = {name: getattr(settings, name) for name in [*SHAPE, "dropout"]}
        config = GPTConfig(padded_vocab_size=tokenizer.padded_vocab_size, **shape)
        if config.problems():
            raise UserError("\n".join(config.problems()))
        model = GPT(config)
    with oom_advice():
        model.to(device)
    objective, figures, reference = next_token, lambda summed: {}, {}
    if settings.stage == "dpo":
        check_prompts(settings, parent, prompt_format)
        objective = DPO(settings.dpo_beta, settings.dpo_average, settings.dpo_label_smoothing)
        figures, reference = objective.figures, refer(parent, resume)
        for pairs in (train_blocks, val_blocks):
            with oom_advice():
                add_reference(
                    pairs,
                    reference["reference_hash"],
                    dtype,
                    lambda: load_reference(reference, device) if resume else model,
                    device,
                    rank,
                    world,
                    lambda totals: summed(totals, device),
                )
    if settings.lora_rank and not resume:  # a resumed run has its adapters
        adapt(model, settings, parent)
    torch.manual_seed(settings.seed + rank)  # and each has a dropout of its own
    freeze(model, settings)
    optimizers = make_optimizers(model, settings, device)
    scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == torch.float16)
    if not settings.deterministic:  # the kernel for pieces sums gradients in no fixed order
        model.use_varlen_attention = has_varlen_attention(device, dtype, model.config.head_dim)
        slow = settings.dropout > 0 or not model.use_varlen_attention
        if first and train_blocks.isolated and device.startswith("cuda") and slow:
            why = "has no dropout" if model.use_varlen_attention else "does not fit here"
            print(f"attention inside pieces by a mask: PyTorch's quicker kernel {why}")
    compiled = torch.compile(model) if settings.compile else model

    # -- where it stands ---------------------------------------------------------------------------
    step, best, stale, minutes, tokens = 0, float("inf"), 0, 0.0, 0
    val_loss, evaluated = None, -1  # the last evaluation, and the step at which it was
    guard_start, forgetting = None, 1.0  # the guard's loss at first; its perplexity beside that now
    if resume:
        if state["blocks"] != len(train_blocks):
            raise UserError(
                f"{out_dir}: was trained on {state['blocks']} blocks, now there are "
                f"{len(train_blocks)}: its data order cannot be continued; start another run with "
                f"--init_from={out_dir} --out_dir=…"
            )
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            # Its moments; learning rate and decay are the settings', which may have changed.
            saved["param_groups"] = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(saved)
        if scaler.is_enabled() and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        if rank < state["world"]:  # one more than before goes on with its seed
            torch.set_rng_state(state["rng"][rank])
            if device.startswith("cuda") and state["cuda_rng"][rank] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank], device)
        step, best, stale = state["step"], state["best"], state["stale"]
        val_loss, evaluated = state["val_loss"], state["evaluated"]
        minutes, tokens = state["minutes"], state["tokens"]
        guard_start, forgetting = state.get("guard_start"), state.get("forgetting", 1.0)
    log = Log(out_dir, step, settings, fresh=not resume) if first else None
    flops = model.flops_per_token(train_blocks.target_fraction)
    peak = peak_flops(device) if first else None
    if first:
        introduce(model, settings, train_blocks, val_blocks, parent, resume)
        left = tokens_per_step / world * (settings.max_iters - step)  # tokens for this device
        warn_if_long(settings, device, flops * left, dtype)
    stop = StopOnSignal()

    def progress():
        share = step / settings.max_iters
        if settings.max_minutes is not None:
            share = max(share, minutes / settings.max_minutes)
        return share

    def evaluate(blocks, objective):
        """Mean loss a target (or a pair), over the same batches every time, without dropout."""
        batches = evaluation_batches(
            blocks, settings.batch_size, settings.eval_iters, rank, world, device
        )
        model.eval()
        with oom_advice():
            total = total_loss(objective, compiled, batches, device, dtype)
        model.train()
        loss, count = summed(torch.tensor(total, dtype=torch.float64), device).tolist()
        return loss / max(count, 1)

    def save(folder, with_state):
        rng = gathered(torch.get_rng_state(), world)
        cuda_rng = torch.cuda.get_rng_state(device) if device.startswith("cuda") else None
        cuda_rng = gathered(cuda_rng, world)
        if not first:
            return
        meta = dict(
            prompt_format=prompt_format,
            step=step,
            tokens=tokens,
            val_loss=val_loss,
            best_val_loss=best,
            init_from=settings.init_from,
            dataset=settings.dataset,
            settings=settings.as_dict(),
            **reference,
        )
        state = dict(
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
            scaler=scaler.state_dict(),
            rng=rng,
            cuda_rng=cuda_rng,
            world=world,
            blocks=len(train_blocks),
            step=step,
            best=best,
            stale=stale,
            val_loss=val_loss,
            evaluated=evaluated,
            guard_start=guard_start,
            forgetting=forgetting,
            minutes=minutes,
            tokens=tokens,
        )
        try:
            checkpoint.save(folder, model, tokenizer, meta, state if with_state else None)
        except OSError as error:
            raise UserError(
                f"{folder}: the checkpoint could not be written ({error.strerror or error}); the "
                f"last good one stands; make room, then go on with --init_from=resume"
            ) from None

    # -- the loop ------------------------------------------------------------------------------
    model.train()
    most_forgetting = settings.dpo_max_forgetting or math.inf
    begun, started = step, time.perf_counter()
    last_log = started, tokens
    while True:
        before = time.perf_counter()
        stopping = stop.asked(device)  # then save at once, and evaluate after the resume
        ended = step >= settings.max_iters or progress() >= 1
        due = ended or step % settings.eval_interval == 0
        if due and not stopping and step != evaluated:
            val_loss, evaluated = evaluate(val_blocks, objective), step
            if not math.isfinite(val_loss):
                raise not_finite(f"step {step}: the val loss is {val_loss}", settings)
            told = figures(lambda totals: summed(totals, device))
            if guard_blocks:
                guard = evaluate(guard_blocks, next_token)
                if not math.isfinite(guard):
                    raise not_finite(f"step {step}: the guard's loss is {guard}", settings)
                guard_start = guard if guard_start is None else guard_start
                forgetting = math.exp(min(guard - guard_start, 99))
                told |= dict(guard_perplexity=math.exp(min(guard, 99)), forgetting=forgetting)
            better = val_loss < best and forgetting <= most_forgetting
            best, stale = val_loss if better else best, 0 if better else stale + 1
            if better:
                save(out_dir / "best", with_state=False)
            if first:
                log.evaluation(step, tokens, minutes, val_loss, better, told)
                log.sample(step, write_sample(model, tokenizer, prompt_format, settings))
        if settings.patience and stale >= settings.patience:  # also where it is resumed
            ended = True
            if first:
                print(f"no better val loss in {stale} evaluations: stopping early")
        if forgetting > most_forgetting:
            ended = True
            if first:
                print(
                    f"perplexity over {settings.dpo_guard_dataset} is {forgetting:.3f} times what "
                    f"it was, more than dpo_max_forgetting={most_forgetting:g}: stopping; best/ is "
                    "the last good one"
                )
        if due or stopping or ended:
            save(out_dir, with_state=True)
            pause = time.perf_counter() - before  # evaluating is no training time
            started, last_log = started + pause, (last_log[0] + pause, last_log[1])
        if ended or stopping:
            break

        scale = lr_scale(step, progress(), settings)
        set_lr(optimizers, scale)
        micro = [batches[step * accumulation + k] for k in range(accumulation)]
        count = summed(torch.tensor(float(sum(batch.count for batch in micro))), device)
        losses = []
        for batch in micro:
            with oom_advice(), autocast(device, dtype):
                loss, _ = objective(compiled, batch)
                # Each micro-batch gives its share of the mean over all the step's targets.
                loss = loss / count.clamp(min=1).item()
            with oom_advice():
                scaler.scale(loss).backward()
            losses.append(loss.detach())  # read when all are under way: reading waits for the GPU
        losses = torch.stack(losses).tolist()
        for batch, loss in zip(micro, losses, strict=True):
            if not math.isfinite(loss):
                rows = f"blocks {batch.rows.tolist()} of {settings.dataset}/train.bin"
                raise not_finite(f"step {step}: the loss is {loss}, in {rows}", settings)
        step_loss = float(summed(torch.tensor(sum(losses)), device))
        told = figures(lambda totals: summed(totals, device))
        sum_gradients(model, world)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
        finite = math.isfinite(norm)
        if not finite and not scaler.is_enabled():
            raise not_finite(f"step {step}: the norm of the gradient is {norm}", settings)
        with oom_advice():  # the first step makes the optimizers' state
            for optimizer in optimizers if finite else ():  # else the scaler tries a lower scale
                scaler.step(optimizer)
        scaler.update()
        model.zero_grad(set_to_none=True)

        step += 1
        tokens += tokens_per_step
        now = time.perf_counter()
        if settings.compile and step == begun + 1:
            started = now  # compiling is no training time
        minutes, started = minutes + (now - started) / 60, now
        clock = torch.tensor(minutes if first else 0.0, dtype=torch.float64)
        minutes = float(summed(clock, device))  # one clock for all: they must end at the same step
        if first and (step % settings.log_interval == 0 or step == 1):
            rate = (tokens - last_log[1]) / (now - last_log[0])
            last_log = now, tokens
            mfu = rate * flops / peak / world if peak else None
            left = minutes * 60 * (1 / max(progress(), 1e-9) - 1) if progress() < 1 else 0
            lr = settings.learning_rate * scale
            log.progress(step, tokens, minutes, step_loss, lr, rate, mfu, left, told)

    if first:
        log.close()
        if val_loss is not None:
            print(f"{out_dir}: step {step}, val loss {val_loss:.4f}, the best {best:.4f} in best/")
        if stopping:
            print(f"{STOPPED}: python train.py --out_dir={out_dir} --init_from=resume")
    if world > 1:
        dist.destroy_process_group()


# -- the start -------------------------------------------------------------------------------------

AT_LEAST = {
    1: "batch_size gradient_accumulation_steps eval_interval eval_iters log_interval",
    0: "max_iters seed learning_rate embedding_lr_ratio warmup_iters weight_decay grad_clip "
    "freeze_layers lora_rank patience sample_tokens norm_eps",
}
SHARES = "min_lr_ratio decay_fraction dropout lora_dropout beta1 beta2 muon_momentum"


def check_ranges(settings):
    """Values that no run can have: UserError names all of them."""
    rules = []
    for name in SHARES.split():
        value = getattr(settings, name)
        below_one = name not in ("min_lr_ratio", "decay_fraction")
        good = 0 <= value < 1 or (value == 1 and not below_one)
        rules.append((name, good, "0 to below 1" if below_one else "0 to 1"))
    for name in ("epochs", "max_minutes", "rope_theta", "lora_alpha", "dpo_beta"):
        value = getattr(settings, name)
        rules.append((name, value is None or value > 0, "more than 0"))
    rules.append(("seed", settings.seed < 2**63, "below 2**63"))
    limit = settings.dpo_max_forgetting
    rules.append(("dpo_max_forgetting", limit is None or limit > 1, "more than 1, or none"))
    rules.append(("dpo_label_smoothing", 0 <= settings.dpo_label_smoothing < 0.5, "0 to below 0.5"))
    a_run = "the folder of a run that answers already: stage=dpo starts from it, and is held to it"
    rules.append(("init_from", (settings.stage, settings.init_from) != ("dpo", "scratch"), a_run))
    if settings.stage == "lm" and settings.init_from != "resume":  # else they come with the run
        given = [name for name in settings.as_dict() if name.startswith("dpo_")]
        given = [name for name in given if settings.origin(name) != "default"]
        rules += [(name, False, "--stage=dpo with it") for name in given]
    if settings.origin("lora_rank") == "default" and settings.init_from != "resume":
        beside = ("lora_alpha", "lora_dropout", "lora_targets")
        given = [name for name in beside if settings.origin(name) != "default"]
        rules += [(name, False, "--lora_rank=8 or so with it") for name in given]
    least = {name: bound for bound, names in AT_LEAST.items() for name in names.split()}
    problems = settings.below(**least) + [
        f"{settings.origin(name)}: {name}={getattr(settings, name)}: expected {expected}"
        for name, good, expected in rules
        if not good
    ]
    if problems:
        raise UserError("\n".join(problems))


def adopt(settings, parent, names):
    """Take over from a checkpoint what it fixes; contradictions by hand raise UserError."""
    saved = {**parent.meta["settings"], **parent.meta["model"]}
    values = {name: saved[name] for name in names if name in saved}
    # none stands for a value that the shape works out: it contradicts nothing.
    for name in ("n_kv_head", "head_dim", "n_hidden"):
        if name in values and getattr(settings, name) is None:
            settings.set(name, values[name], str(parent.folder))
    settings.inherit(values, str(parent.folder))


def take_over(settings):
    """The Hugging Face model of init_from as a Checkpoint, in blocks of the size that was asked
    for. UserError where the training needs a run with a folder of its own."""
    if settings.lora_rank or settings.stage == "dpo":
        raise UserError(
            f"{settings.origin('init_from')}: init_from={settings.init_from}: adapters and DPO "
            f"start from a run, which they refer to; make it one first with the same --init_from, "
            f"--max_iters=0 and an --out_dir, and start from that"
        )
    size = None if settings.origin("block_size") == "default" else settings.block_size
    return hf_import.load(settings.init_from, size)


def share_steps(settings, before, world):
    """Keep a step's blocks the same where a run of `before` processes goes on with `world`: each
    accumulates more of them, or fewer. UserError where they cannot be shared."""
    batches = settings.gradient_accumulation_steps * before
    if batches % world:
        fit = [str(n) for n in range(1, batches + 1) if batches % n == 0]
        raise UserError(
            f"{settings.out_dir}: a step of this run takes {batches} batches, which {world} "
            f"processes cannot share; take {' or '.join(fit)}"
        )
    if world != before:
        origin = f"{before} processes before, {world} now"
        settings.set("gradient_accumulation_steps", batches // world, origin)


def adapt(model, settings, parent):
    """Give the model adapters beside its weights, which freeze; UserError where there is no run
    that these are from, and for a rank above their own."""
    if parent is None:
        raise UserError(
            f"{settings.origin('lora_rank')}: lora_rank={settings.lora_rank}: adapters are trained "
            f"beside the weights of a run: say which with --init_from=out/…"
        )
    width = model.config.n_embd
    if settings.lora_rank > width:
        raise UserError(
            f"{settings.origin('lora_rank')}: lora_rank={settings.lora_rank}: expected at most "
            f"{width}, the model's width: its matrices have no higher rank"
        )
    lora = LoRA(
        settings.lora_rank,
        settings.lora_alpha,
        settings.lora_dropout,
        settings.lora_targets,
        settings.freeze_layers,
        parent.folder,
        checkpoint.weights_hash(parent.folder),
    )
    attach(model, lora)


def check_prompts(settings, parent, prompt_format):
    """UserError where the run that DPO starts from is not asked as the pairs ask."""
    if parent.prompt_format != prompt_format:
        raise UserError(
            f"{settings.dataset}: its prompts are of the format {prompt_format}, those of "
            f"{parent.folder} of {parent.prompt_format}: fine-tune that first, or prepare the "
            f"pairs with its --format"
        )


def refer(parent, resume):
    """What config.json says of the run that DPO refers to: where it is and its weights' hash."""
    if resume:
        return {name: parent.meta[name] for name in ("reference", "reference_hash")}
    weights = checkpoint.weights_hash(parent.folder)
    return dict(reference=parent.folder.as_posix(), reference_hash=weights)


def load_reference(reference, device):
    """The model of the run that DPO refers to, whose log-probabilities a resumed run did not find.
    UserError where it is no longer what it was."""
    folder = reference["reference"]
    if checkpoint.weights_hash(folder) != reference["reference_hash"]:
        raise UserError(
            f"{folder}: has other weights than those that this run refers to, and what those gave "
            f"is no longer beside the pairs; bring either back"
        )
    return checkpoint.load(folder, device).model


def freeze(model, settings):
    """Keep embeddings and the lower blocks as they are, where the settings say so."""
    frozen = list(model.blocks[: settings.freeze_layers])
    if settings.freeze_layers > len(model.blocks):
        raise UserError(
            f"freeze_layers={settings.freeze_layers}: the model has {len(model.blocks)} blocks"
        )
    if settings.freeze_embeddings:
        frozen += [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    for module in frozen:
        module.requires_grad_(False)


def introduce(model, settings, train_blocks, val_blocks, parent, resume):
    """Say what is about to be trained on what."""
    count, moving = model.n_params(), sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {moving / 1e6:.2f}M of them move" if moving != count else ""
    start = "from scratch"
    if parent:
        verb = "resuming" if resume else "starting from"
        start = f"{verb} {parent.folder} at step {parent.meta['step']}"
    print(f"model: {count / 1e6:.2f}M parameters{frozen}, {start}")
    blocks = train_blocks.meta["counts"]["train"]
    judge = f" ({val_blocks.folder})" if settings.val_dataset else ""
    print(
        f"data: {settings.dataset}: {len(train_blocks)} train and {len(val_blocks)} val{judge} "
        f"{train_blocks.unit} of {settings.block_size} ({train_blocks.meta['layout']}), "
        f"{blocks['targets']:,} targets",
        flush=True,
    )


def warn_if_long(settings, device, flops, dtype):
    """Before the first step: a run of more than a day says so, and what would fit."""
    if settings.max_minutes is not None and settings.max_minutes <= 24 * 60:
        return
    # A well-fed CPU keeps 0.6 of its matrix-product rate in training, a GPU about 0.4.
    on_cpu = device == "cpu"
    size = 1024 if on_cpu else 4096
    rate = matmul_flops(device, dtype, size) * (0.6 if on_cpu else 0.4)
    days = flops / rate / 86400
    if days > 1:
        recipe = "config/cpu_small.py" if on_cpu else "a smaller max_iters"
        print(
            f"note: this run will take about {days:.1f} days on this machine; "
            f"{recipe} fits it better (or --max_minutes=… for a part of the run)",
            flush=True,
        )


def not_finite(what, settings):
    """The UserError for a run that went beyond all numbers, raised before that can be saved."""
    return UserError(
        f"{what}; the last good checkpoint is {settings.out_dir}; try a lower learning_rate, more "
        f"warmup_iters, or dtype=float32"
    )


class StopOnSignal:
    """Ctrl-C or SIGTERM ends the run after the present step, saved; a second one at once."""

    def __init__(self):
        self.signalled = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._note)

    def _note(self, number, frame):
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        print("\nstopping after this step (again: at once) …", flush=True)

    def asked(self, device):
        """Whether any process was asked to stop, so that all stop at the same step."""
        # Not noted as this process's own: its own signal may still be on its way.
        return bool(summed(torch.tensor(float(self.signalled)), device))


# -- many processes as one -------------------------------------------------------------------------


def summed(value, device):
    """The sum of a tensor over all processes."""
    if not dist.is_initialized():
        return value
    value = value.to(device)
    with lost_process():
        dist.all_reduce(value)
    return value.cpu()


def sum_gradients(model, world):
    """Add up the gradients of all processes. They were divided by the global count before, and are
    reduced once a step whatever the accumulation; so the sum is the gradient of the mean."""
    if world == 1:
        return
    for weight in model.parameters():
        if weight.grad is not None:
            with lost_process():
                dist.all_reduce(weight.grad)


def gathered(value, world):
    """Every process's `value`, in the order of ranks."""
    if world == 1:
        return [value]
    values = [None] * world
    with lost_process():
        dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def lost_process():
    """Within it, the end of another process becomes a message with the way to go on."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"another process of this run has ended ({reason}); the last checkpoint stands: go on "
            "with --init_from=resume, on any number of processes that share a step's batches evenly"
        ) from None


class oom_advice:
    """Within it, running out of GPU memory becomes a message with the knobs to turn."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is torch.cuda.OutOfMemoryError:
            raise UserError(
                "the GPU is out of memory; turn one of: batch_size down (and "
                "gradient_accumulation_steps up by as much: the same training), block_size down "
                "(prepare the data anew), n_layer or n_embd down"
            ) from None


# -- what the run tells ----------------------------------------------------------------------------


def write_sample(model, tokenizer, prompt_format, settings):
    """A short text, to see how the model writes; "" where no prompt is set."""
    asked = Example(None, settings.sample_prompt, "")
    if settings.origin("sample_prompt") == "default":
        asked = first_held_out(settings.dataset, prompt_format) or asked
    if not asked.prompt:
        return ""
    request = Request(
        example_ids(tokenizer, prompt_format, asked),
        settings.sample_tokens,
        temperature=0.7,
        top_k=50,
        seed=settings.seed,  # a generator of its own: the run's randomness is left alone
        stop_ids=stop_ids(tokenizer),
    )
    (ticket,) = Engine(model, tokenizer.n_vocab, n_slots=1).generate([request])
    model.train()
    return f"{asked.prompt} → {tokenizer.decode(ticket.ids)}"


class Log:
    """Progress lines on the screen; log.jsonl, samples.txt and TensorBoard in the run's folder."""

    def __init__(self, folder, step, settings, fresh):
        self.max_iters, self.board = settings.max_iters, None
        self.path, self.samples = folder / "log.jsonl", folder / "samples.txt"
        check_writable(self.path)
        if fresh:
            checkpoint.discard(folder)  # what --overwrite=true gave up
        # What stands after the checkpoint belongs to steps that are taken again.
        if self.path.exists():
            told = self.path.read_text(encoding="utf-8")
            lines = told.splitlines()
            whole = [line for line in lines if line.endswith("}")]  # the last may be torn
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            if len(kept) < len(lines) or not told.endswith("\n"):
                write_text(self.path, "".join(line + "\n" for line in kept))
        if self.samples.exists():
            told = self.samples.read_bytes()  # as bytes: a model may write any kind of line break
            texts = [text for text in re.split(rb"^(?=step \d+: )", told, flags=re.M) if text]
            kept = [text for text in texts if int(text[5:].split(b":")[0]) <= step]
            if len(kept) < len(texts):
                with written_whole(self.samples) as partial:
                    partial.write_bytes(b"".join(kept))
        if settings.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("tensorboard=true: first, pip install tensorboard") from None
            self.board = SummaryWriter(folder, purge_step=0 if fresh else step + 1)

    def _write(self, record):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board:
            for name, value in record.items():
                if name not in ("step", "best") and value is not None:
                    self.board.add_scalar(name, value, record["step"])

    def progress(self, step, tokens, minutes, loss, lr, rate, mfu, left, told):
        record = dict(step=step, tokens=tokens, minutes=minutes, loss=loss, lr=lr, rate=rate)
        self._write(record | told)
        mfu = f" | mfu {mfu:4.0%}" if mfu else ""
        print(
            f"step {step:>6}/{self.max_iters} | loss {loss:7.4f}{_shown(told)} | lr {lr:.2e} | "
            f"{rate:8,.0f} tok/s{mfu} | {duration(left)} left",
            flush=True,
        )

    def evaluation(self, step, tokens, minutes, val_loss, better, told):
        record = dict(step=step, tokens=tokens, minutes=minutes, val_loss=val_loss, best=better)
        self._write(record | told)
        best = " (best)" if better else ""
        print(f"step {step:>6}: val loss {val_loss:.4f}{best}{_shown(told)}", flush=True)

    def sample(self, step, text):
        if text:
            with open(self.samples, "a", encoding="utf-8") as file:
                file.write(f"step {step}: {text}\n\n")
            print(f"  sample: {text}", flush=True)

    def close(self):
        if self.board:
            self.board.close()


def _shown(told):
    """An objective's own figures, for a line on the screen."""
    return "".join(f" | {name} {value:.3f}" for name, value in told.items())


if __name__ == "__main__":
    run(main)
