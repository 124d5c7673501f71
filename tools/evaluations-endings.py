"""Which of four sentences comes next: a multiple-choice test of a run, made of any text.

    python tools/evaluations-endings.py --out_dir=out/pretrain --input=data/processed/val.jsonl
    python tools/evaluations-endings.py --out_dir=out/sft --input=data/processed/val.jsonl

The test before and after fine-tuning shows how much the run forgets. It has the form of HellaSwag:
an entry's first sentence, the one after it, and three of other entries. Its data and description
for lm-evaluation-harness, which scores any exported run or any server, are written into --task:

    python tools/export.py --out_dir=out/sft
    lm_eval --model=hf --model_args=pretrained=out/sft/hf --tasks=endings --include_path=out/endings
"""

import pathlib
import sys
from pathlib import Path

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = ""  # texts outside the training data: files or folders, comma-separated
    task: str = "out/endings"  # the folder of data and description; its name is the task's name
    limit: int | None = None  # a random subset of this size; none: all entries
    seed: int = 1337  # of the wrong endings, of their order and of that subset
    output: str = ""  # JSON file of the results; "": endings.json in out_dir


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype kernels", doc=__doc__, quiet=True)
    if problems := settings.below(limit=1, seed=0):
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import check_writable, progress, table, write_json
from minigpt.evaluation.examples import read_examples
from minigpt.evaluation.multiple_choice import (
    METRICS,
    N_ENDINGS,
    fitting,
    make_items,
    score,
    write_task,
)
from minigpt.evaluation.quantization_cost import load_for_generation


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    output = Path(settings.output or trained.folder / "endings.json")
    check_writable(output)
    examples, _ = read_examples(settings.input, "plain")
    made = make_items(examples, settings.seed, settings.limit)
    block_size = trained.model.config.block_size
    items = fitting(made, trained.tokenizer, block_size)
    if not items:
        raise UserError(f"{settings.input}: no item fits the run's block of {block_size} tokens")
    if len(items) < len(made):
        print(f"{len(made) - len(items)} items are longer than a block of {block_size}: left out")
    folder = Path(settings.task)
    name = folder.resolve().name
    task = write_task(folder, name, items)
    with progress(len(items), "items") as advance:
        figures = score(trained, items, advance)
    shown = [f"{figures[m]:.4f} ± {figures[f'{m}_stderr']:.4f}" for m in METRICS]
    print(table(["run", "items", *METRICS], [[str(trained.folder), figures["items"], *shown]]))
    print(f"chance: {1 / N_ENDINGS}")
    write_json(output, dict(out_dir=str(trained.folder), task=str(task), **figures))
    print(f"figures: {output}\n")
    print(
        "the same by lm-evaluation-harness:\n"
        'pip install "lm_eval[hf]"\n'
        f"python tools/export.py --out_dir={trained.folder}\n"
        f"lm_eval --model=hf --model_args=pretrained={trained.folder / 'hf'} "
        f"--tasks={name} --include_path={folder}"
    )


if __name__ == "__main__":
    run(main)
