"""What a run prints before its first step and after its last one."""

import math
from pathlib import Path

from minigpt.common.scripts import typed
from minigpt.models.device import matmul_flops
from minigpt.training.log import STOPPED
from minigpt.training.run_length import FEW_STEPS


def print_summary(model, settings, data, parent, resumed):
    """Two lines: the model and what it starts from; the data."""
    count, moving = model.n_params(), sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {moving / 1e6:.2f}M of them trained" if moving != count else ""
    start = "from scratch"
    if parent:
        verb = "resuming" if resumed else "starting from"
        start = f"{verb} {parent.folder} at step {parent.meta['step']}"
    print(f"model: {count / 1e6:.2f}M parameters{frozen}, {start}")
    train, val = data.train, data.val
    targets = train.meta["counts"]["train"]["targets"]
    val_folder = f" ({val.folder})" if settings.val_dataset else ""
    print(
        f"data: {settings.dataset}: {len(train)} train and {len(val)} val{val_folder} {train.unit} "
        f"of {settings.block_size} ({train.meta['layout']})"
        + f", {targets:,} targets"
        * bool(targets),
        flush=True,
    )


def warn_if_long(settings, device, dtype, flops):
    """A note if the run will take more than a day on this device. flops: of all its steps."""
    if settings.max_minutes is not None and settings.max_minutes <= 24 * 60:
        return
    # Training reaches 0.6 of the rate of matrix products on a CPU, and about 0.4 on a GPU.
    on_cpu = device == "cpu"
    rate = matmul_flops(device, dtype, 1024 if on_cpu else 4096) * (0.6 if on_cpu else 0.4)
    days = flops / rate / 86400
    if days > 1:
        advice = "config/cpu_small.py" if on_cpu else "a smaller max_iters"
        print(
            f"note: this run will take about {days:.1f} days on this machine; "
            f"{advice} fits it better (or --max_minutes=… for a part of the run)",
            flush=True,
        )


def print_end(trainer, prompt, reason=None):
    """Why the run ended, what its val loss means, and what to do next. prompt: a text to continue
    or a question; reason: of an early stop."""
    settings, state, stopped = trainer.settings, trainer.state, trainer.stop_requested
    out_dir = settings.out_dir
    share = f"step {state.step:,} of {settings.max_iters:,}"
    if state.step < settings.max_iters:
        share += f" ({state.step / settings.max_iters:.0%})"
    if reason:
        print(reason)
    elif stopped:
        print(f"stopped by a signal: {share}")
    elif state.step < settings.max_iters:
        print(f"max_minutes={settings.max_minutes:g} are over: {share}")
    else:
        origin = settings.origin("max_iters")
        print(f"{origin if origin.startswith('epochs') else 'max_iters'} reached: {share}")
    if state.val_loss is not None:
        print(
            f"{out_dir}: step {state.step}, val loss {state.val_loss:.4f}, "
            f"the best {state.best:.4f} in best/"
        )
        if settings.stage in ("lm", "distill"):
            print(loss_meaning(state, trainer.tokenizer.n_vocab))
    if stopped:
        print(f"{STOPPED}: {typed('train.py', f'--out_dir={out_dir}', '--init_from=resume')}")
        return
    is_cut = not reason and state.step < settings.max_iters  # by max_minutes
    print("next:", *next_commands(trainer, prompt, is_cut), sep="\n  ")


def loss_meaning(state, n_vocab):
    """What the val loss of a language model means, in a line."""
    choices = math.exp(min(state.val_loss, 99))
    line = f"the model is as unsure of the next token as among {choices:,.0f} equally likely ones"
    line += f" (untrained: {n_vocab:,})"
    if state.val_loss > state.best + 0.1:
        line += "; it was lower: the run learns its training data by heart (best/ does not)"
    elif state.step < FEW_STEPS:
        line += (
            f"; {state.step} steps are few: texts without sense and empty answers are usual so "
            "early"
        )
    return line


def next_commands(trainer, prompt, is_cut):
    """Two commands that go on from here, as texts. is_cut: the run has steps left to take."""
    settings = trainer.settings
    run = f"--out_dir={settings.out_dir}"
    # A shell reads these characters even within quotes.
    can_be_typed = prompt and prompt.isprintable() and not set(prompt) & set('"$`\\!')
    ask = typed("sample.py", run, *([f"--start={prompt}"] if can_be_typed else []))
    if is_cut:
        longer = f"--max_minutes={2 * settings.max_minutes:g}"
        return ask, typed("train.py", run, "--init_from=resume", longer)
    if settings.stage in ("dpo", "grpo"):
        return ask, typed("visualize.py", f"--runs={settings.out_dir}")
    held_out = Path(settings.dataset, "val.jsonl")
    if trainer.data.train.meta["prompt_format"] == "qa" and held_out.exists():
        return ask, typed("evaluations-RougeL.py", run, f"--input={held_out}")
    return ask, typed("evaluations-perplexity.py", run)
