"""The length of a run, before it starts: recipes are written for much text, data may be little.

notes = fit_run_length(settings, n_blocks, world)     # a line for each setting that was changed

What the user gave as a flag is kept.
"""

import math

WARMUP_SHARE = 0.1  # of the run: a longer warm-up leaves too few steps at the peak
SHORT_EPOCH = 30  # steps
FEW_STEPS = 200  # of fine-tuning: fewer hardly change the answers (bench/README.md)
# Passes over the same text: after some 15 the gain has halved again and again, and the val loss of
# a small text turns up long before (Muennighoff et al. 2023; finding 5).
MOST_PASSES = 20


def fit_run_length(settings, n_blocks, world=1):
    """Set max_iters where `epochs` is given, and fit batch_size, epochs, max_iters and warmup_iters
    to `n_blocks` of training data on `world` processes. A resumed run was fitted when it started.
    Returns the notes to print, a list."""
    notes, is_new = [], settings.init_from != "resume"
    if is_new and settings.stage in ("lm", "distill"):
        if settings.epochs is not None:
            notes += _more_steps(settings, n_blocks, world)
        else:
            notes += _fewer_passes(settings, n_blocks, world)
    if settings.epochs is not None:
        steps = math.ceil(settings.epochs * _epoch(settings, n_blocks, world))
        settings.set("max_iters", max(1, steps), f"epochs={settings.epochs:g}")
    return notes + _shorter_warmup(settings) if is_new else notes


def _epoch(settings, n_blocks, world):
    """Steps in an epoch, a float."""
    return n_blocks / (settings.batch_size * settings.gradient_accumulation_steps * world)


def _is_flag(settings, name):
    return settings.origin(name) == f"--{name}"


def _smaller_steps(settings, n_blocks, world):
    """Lower gradient_accumulation_steps and batch_size until SHORT_EPOCH steps are an epoch, or
    each is 1. Returns the changes as texts."""
    before = {}
    for name in ("gradient_accumulation_steps", "batch_size"):
        if _is_flag(settings, name):
            continue
        value = settings.as_dict()[name]
        while value > 1 and _epoch(settings, n_blocks, world) < SHORT_EPOCH:
            before.setdefault(name, value)
            value //= 2
            settings.set(name, value, "little data")
    return [f"{name} {old} → {settings.as_dict()[name]}" for name, old in before.items()]


def _more_steps(settings, n_blocks, world):
    """Make the steps smaller, then the epochs more, where epochs are too few steps to learn."""
    steps = settings.epochs * _epoch(settings, n_blocks, world)
    if _epoch(settings, n_blocks, world) >= SHORT_EPOCH or steps >= FEW_STEPS:
        return []
    changes = _smaller_steps(settings, n_blocks, world)
    epoch = _epoch(settings, n_blocks, world)
    epochs = math.ceil(FEW_STEPS / epoch)
    if settings.init_from == "scratch":  # a pair is learned by heart, a text is not
        epochs = min(epochs, MOST_PASSES)
    if epochs > settings.epochs and not _is_flag(settings, "epochs"):
        changes.append(f"epochs {settings.epochs:g} → {epochs}")
        settings.set("epochs", float(epochs), "little data")
    total = math.ceil(settings.epochs * epoch)
    reason = f"{n_blocks} blocks would be only {math.ceil(steps)} steps"
    if not changes:
        return [f"note: {reason}, too few to learn: leave out --batch_size and --epochs"]
    return [f"note: {reason}: {', '.join(changes)}; now {total}"]


def _fewer_passes(settings, n_blocks, world):
    """End the run before it has read its data more than MOST_PASSES times."""
    if settings.max_iters <= MOST_PASSES * _epoch(settings, n_blocks, world):
        return []
    passes = settings.max_iters / _epoch(settings, n_blocks, world)
    reason = f"{settings.max_iters:,} steps read the {n_blocks:,} blocks {passes:,.0f} times"
    if _is_flag(settings, "max_iters"):
        return [f"note: {reason}: it learns them by heart; best/ keeps the lowest val loss"]
    changes = _smaller_steps(settings, n_blocks, world)
    steps = math.ceil(MOST_PASSES * _epoch(settings, n_blocks, world))
    changes.append(f"max_iters {settings.max_iters:,} → {steps:,}")
    settings.set("max_iters", steps, "little data")
    return [
        f"note: {reason}, and learn nothing from most of them: {', '.join(changes)} "
        f"({MOST_PASSES} times); more text helps, or --max_iters=…"
    ]


def _shorter_warmup(settings):
    """Shorten a warm-up that takes more than WARMUP_SHARE of the run. One that the user gave is
    kept up to half of the run."""
    steps, given = settings.max_iters, settings.warmup_iters
    limit = int(WARMUP_SHARE * steps)
    if given <= limit:
        return []
    reason = f"warmup_iters={given} of {steps:,} steps"
    if _is_flag(settings, "warmup_iters") and given <= steps / 2:
        return [f"note: {reason}: more than a tenth of the run is below the peak learning rate"]
    settings.set("warmup_iters", limit, f"a tenth of {steps:,} steps")
    return [f"note: {reason} would leave too few at the peak learning rate: shortened to {limit}"]
