"""Plot runs: train and val loss, learning rate, the best evaluation, from <run>/log.jsonl.

    python visualize.py --runs=out/pretrain --output=loss.png
    python visualize.py --runs=out/pretrain,out/sft --output=loss.png,loss.svg --x=minutes

A run may still be training. Losses are per token, so runs with different tokenizers cannot be
compared here: evaluations-perplexity.py gives bits per character for that.
"""

from pathlib import Path
from typing import Literal

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    runs: list[str] = ["out/pretrain"]  # folders of runs
    output: str = "loss.png"  # .png or .svg, or both, comma-separated
    x: Literal["steps", "tokens", "minutes"] = "steps"  # the x axis
    smooth: float = 0.9  # β of the train loss's moving average, below 1; 0: no smoothing
    log: Literal["auto", "none", "x", "y", "both"] = "auto"  # which axes are logarithmic;


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, doc=__doc__, quiet=True)
    if not 0 <= settings.smooth < 1:
        raise UserError(f"--smooth={settings.smooth:g}: expected 0 (none) up to but not 1, as 0.9")
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.plotting.loss import best_position, format_loss, loss_figure
from minigpt.plotting.output import output_paths, write_figure
from minigpt.training.log import read_runlogs, run_names

# auto: if runs differ so much in length or loss that a linear axis would squeeze one flat


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    paths = output_paths(settings.output)
    folders = list({Path(folder).resolve(): Path(folder) for folder in settings.runs}.values())
    if not folders:
        raise UserError("--runs: no run given; write --runs=out/pretrain,out/sft")
    logs = read_runlogs(folders)

    figure, notes = loss_figure(logs, settings.x, settings.smooth, settings.log)
    write_figure(figure, paths)
    for log, name in zip(logs, run_names(folders), strict=True):
        line = f"{name}: {log.end():,.0f} steps, {log.end('tokens'):,.0f} tokens"
        if log.best is not None:
            best = log.val["val_loss"][log.best]
            line += f", best val loss {format_loss(best)} at {best_position(log, settings.x)}"
        print(line)
    for note in notes:
        print(note)
    print(f"wrote {', '.join(map(str, paths))}")


if __name__ == "__main__":
    run(main)
