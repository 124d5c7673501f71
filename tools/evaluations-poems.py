"""How well a run writes poems: form, rhyme, tones, heads, repetition, novelty, by temperature.

    python tools/evaluations-poems.py --out_dir=out/poems_sft
    python tools/evaluations-poems.py --out_dir=out/poems_sft --temperature=0.4,0.8,1.2 --number=500
    python tools/evaluations-poems.py --out_dir=out/poems       # a pretrained run: begun poems

The run is asked for poems by the held-out instructions in data/poems/test.jsonl; a run that was not
fine-tuned continues the first two characters of the same poems. The last row of the table is the
real poems that were held out. Rhyme and tones are those of modern Mandarin (pip install pypinyin).

The results are written into the run's folder: poems.md (the table), poems.json (all digits, also by
kind of instruction), poems.jsonl (every poem with its measures) and poems.png.
"""

import pathlib
import sys
from pathlib import Path

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    data: str = "data/poems"  # the folder of data/prepare_poems.py: test.jsonl and poems.jsonl
    number: int = 200  # of instructions
    temperature: list[str] = ["0.8"]  # one or several; 0: greedy
    top_p: float = 1.0  # sample from the most likely tokens with this total probability
    max_new_tokens: int = 100  # of a poem
    batch_size: int = 32  # poems at once; changes only the speed
    output: str = ""  # the folder of the results; "": out_dir


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype kernels", doc=__doc__, quiet=True)
    if problems := settings.below(number=1, max_new_tokens=1, batch_size=1):
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import (
    check_writable,
    markdown_table,
    progress,
    table,
    write_json,
    write_jsonl,
    write_text,
)
from minigpt.evaluation import poem_figures
from minigpt.evaluation.poems import sound
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.evaluation.repetition import read_values
from minigpt.inference.engine import Engine
from minigpt.plotting.grid import grid_figure
from minigpt.plotting.output import write_figure

PLOTTED = ("form", "rhyme", "tones", "heads", "copied", "distinct_2")


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    temperatures = read_values("temperature", settings.temperature, float)
    sound("诗")  # pypinyin is there
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    folder = Path(settings.output or trained.folder)
    outputs = {suffix: folder / f"poems{suffix}" for suffix in (".md", ".json", ".jsonl", ".png")}
    for path in outputs.values():
        check_writable(path)
    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    tests = poem_figures.read_tests(f"{settings.data}/test.jsonl", prompt_format, settings.number)
    engine = Engine(trained.model, tokenizer.n_vocab, settings.batch_size)
    with progress(len(tests) * len(temperatures), "poems") as advance:
        rows = poem_figures.written(
            engine,
            tokenizer,
            prompt_format,
            tests,
            temperatures,
            settings.top_p,
            settings.max_new_tokens,
            advance,
        )
    training = poem_figures.read_training(f"{settings.data}/poems.jsonl")
    figures = poem_figures.summaries(rows, training)

    header, lines = poem_figures.as_table(figures)
    about = dict(out_dir=str(trained.folder), step=trained.meta["step"])
    about |= dict(settings=settings.as_dict(), figures=figures)
    write_json(outputs[".json"], about)
    write_jsonl(outputs[".jsonl"], rows)
    write_text(outputs[".md"], markdown_table(header, lines))
    *of_run, real = figures
    panels = {
        poem_figures.MEASURES[name]: [figure[name] for figure in of_run]
        for name in PLOTTED
        if real[name] is not None
    }
    references = {poem_figures.MEASURES[name]: real[name] for name in PLOTTED}
    title = "poems; dashed: real poems that were held out"
    axes = {"temperature": temperatures}
    figure, notes = grid_figure(trained.folder.name, title, axes, panels, 1.0, references)
    write_figure(figure, [outputs[".png"]])
    print(f"\n{table(header, lines)}\n", *notes, sep="\n")
    print(f"poems: {outputs['.jsonl']}, picture: {outputs['.png']}")


if __name__ == "__main__":
    run(main)
