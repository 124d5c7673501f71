"""What a run prints before its first step: what is trained on what, and whether that takes days."""

from minigpt.models.device import matmul_flops


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
        f"of {settings.block_size} ({train.meta['layout']}), {targets:,} targets",
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
