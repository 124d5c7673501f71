"""How much a run repeats itself, by temperature, top_p, top_k, repetition penalty and beams.

    python tools/evaluations-repetition.py --out_dir=out/sft                        # examples.csv
    python tools/evaluations-repetition.py --out_dir=out/pretrain --questions=starts.txt --seeds=8
    python tools/evaluations-repetition.py --out_dir=out/sft --temperature=0.1,0.4,1.5 --top_p=0.5,1
    python tools/evaluations-repetition.py --out_dir=out/sft --temperature=0 --num_beams=1,2,4

Knobs with several values make a grid: the run answers every question in each cell. Beam search and
temperature 0 do not use top_p and top_k: combinations with the same texts are one cell, with
one text a question. The results are written into the run's folder: repetition.md (the table), .csv
and .json (all digits), .jsonl (every text), and repetition_*.png: lines if one knob has several
values, heat maps if two or more have.
"""

import pathlib
import sys
from pathlib import Path

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    questions: str = "examples.csv"  # the questions: .txt, one a line; .csv with the column prompt
    #                                  or question; .jsonl with question, prompt or text
    temperature: list[str] = ["0.1", "0.3", "0.5", "0.85", "1.2", "1.7"]  # 0: greedy
    top_p: list[str] = ["1"]  # sample from the most likely tokens with this total probability
    top_k: list[str] = ["0"]  # sample from the k most likely tokens; 0: from all
    repetition_penalty: list[str] = ["1"]  # above 1: tokens in the text are less likely
    num_beams: list[str] = ["1"]  # above 1: beam search, without sampling
    seeds: int = 4  # texts for each question in each cell that samples
    max_new_tokens: int = 225  # longest text, in tokens
    batch_size: int = 16  # texts at once (each beam counts); changes only the speed
    output: str = ""  # the folder of the results; "": out_dir


def read_settings():
    """The settings, checked."""
    return configure(Settings, shared="out_dir device dtype kernels", doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import (
    check_writable,
    progress,
    table,
    write_json,
    write_jsonl,
    write_text,
)
from minigpt.evaluation import repetition
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference.engine import Engine
from minigpt.plotting.grid import grid_figure
from minigpt.plotting.output import write_figure

KINDS = dict(temperature=float, top_p=float, top_k=int, repetition_penalty=float, num_beams=int)
SUFFIXES = (".md", ".csv", ".json", ".jsonl")


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    values, cells = read_grid(settings)
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    folder = Path(settings.output or trained.folder)
    outputs = {suffix: folder / f"repetition{suffix}" for suffix in SUFFIXES}
    for path in outputs.values():
        check_writable(path)
    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    questions = repetition.read_questions(settings.questions, prompt_format)

    slots = max(settings.batch_size, *values["num_beams"])
    engine = Engine(trained.model, tokenizer.n_vocab, slots)
    seeds = settings.seeds
    total = len(questions) * sum(seeds if cell.draws else 1 for cell in cells)
    print(f"{len(questions)} questions, {len(cells)} cells, {total:,} texts", flush=True)
    with progress(total, "texts") as advance:
        rows = repetition.generate_texts(
            engine,
            tokenizer,
            prompt_format,
            questions,
            cells,
            seeds,
            settings.max_new_tokens,
            on_end=advance,
        )
    figures = repetition.summaries(rows, cells)
    header, lines = repetition.as_table(figures)
    write_jsonl(outputs[".jsonl"], rows)
    about = dict(out_dir=str(trained.folder), step=trained.meta["step"])
    about |= dict(questions=questions, settings=settings.as_dict())
    write_json(outputs[".json"], about | dict(cells=figures))
    write_text(outputs[".csv"], repetition.as_csv(figures))
    write_text(outputs[".md"], repetition.as_markdown(header, lines))
    print(f"\n{table(header, lines)}\n")
    for name in ("shares", *repetition.PLOTTED):  # perhaps of an earlier grid
        (folder / f"repetition_{name}.png").unlink(missing_ok=True)
    for name, picture in repetition.pictures(figures, values).items():
        path = folder / f"repetition_{name}.png"
        figure, notes = grid_figure(trained.folder.name, *picture)
        write_figure(figure, [path])
        print(*notes, f"picture: {path}", sep="\n")
    print(f"table: {outputs['.md']}, texts: {outputs['.jsonl']}")


def read_grid(settings):
    """(values, cells) of the knobs that may have several values. UserError names all mistakes."""
    problems, values = settings.below(seeds=1, batch_size=1, max_new_tokens=1), {}
    for name, kind in KINDS.items():
        try:
            values[name] = repetition.read_values(name, getattr(settings, name), kind)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return values, repetition.grid(**values)


if __name__ == "__main__":
    run(main)
