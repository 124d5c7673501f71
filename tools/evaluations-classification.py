"""How well a run classifies texts: accuracy, precision, recall, F1, confusion matrix.

    python data/prepare_classes.py --input=bbc_news.csv --output=data/bbc
    python tools/evaluations-classification.py --out_dir=out/bbc_sft --input=data/bbc/test.jsonl
    python tools/evaluations-classification.py --out_dir=out/bbc --input=data/bbc/test.jsonl \\
        --shots=1

A run that was not trained on the task is asked zero-shot, or (--shots) with answered examples of
the training part before the text, in one's own words (--instruction, --wording):

    … --shots=1 --instruction="Sort the articles." \\
        --wording="Example {number}\\n{text}\\nCategory: {label}"

With five classes the text that is asked about is then "Example 6". The label is read in four ways:
the first label in the generated text, and the most likely label by the sum of its tokens'
log-probabilities, by their mean, or by its first token. The results are written into the run's
folder: classification.json (all figures), classification.jsonl (one line a text) and confusion.png.
bench/tfidf.py is a baseline.
"""

import pathlib
import sys
from pathlib import Path

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = ""  # test.jsonl of data/prepare_classes.py; train.jsonl and task.json beside it
    shots: int = 0  # answered examples of each class before the text; 0: none
    instruction: str | None = None  # what is before all texts; {labels}: the list of the labels;
    #                                 none: that of task.json
    wording: str = ""  # how a text is shown with its label: {text}, {label}, perhaps {number}; \n
    #                    is a line break; "": the text, the words of task.json, the label
    limit: int | None = None  # a random subset of this size; none: all texts
    seed: int = 1337  # of that subset and of the examples
    batch_size: int = 16  # texts at once; changes the speed, not the labels
    output: str = ""  # the folder where the files go; "": out_dir


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype kernels", doc=__doc__, quiet=True)
    if problems := settings.below(batch_size=1, shots=0, seed=0, limit=1):
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import check_writable, progress, table, write_json, write_jsonl
from minigpt.evaluation.classification import (
    answer_room,
    draw_shots,
    fitted_question,
    predict,
    read_labelled,
    read_task,
    scores,
)
from minigpt.evaluation.examples import draw
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.plotting.confusion import confusion_figure
from minigpt.plotting.output import write_figure


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    task = worded(read_task(Path(settings.input).parent), settings)
    rows = draw(read_labelled(settings.input, task.labels), settings.limit, settings.seed)
    if not rows:
        raise UserError(f"{settings.input}: no text here")
    train = []
    if settings.shots:
        train = read_labelled(Path(settings.input).with_name("train.jsonl"), task.labels)
    shots = draw_shots(train, task.labels, settings.shots, settings.seed)
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    folder = Path(settings.output or trained.folder)
    suffix = f"-{settings.shots}shot" if shots else ""
    output, picture = folder / f"classification{suffix}.json", folder / f"confusion{suffix}.png"
    check_writable(output)

    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    room = trained.model.config.block_size - answer_room(task, tokenizer, prompt_format)
    asked = [fitted_question(task, row.text, shots, tokenizer, prompt_format, room) for row in rows]
    questions = [question for question, _ in asked]
    shortened = sum(short for _, short in asked)
    if shortened:
        print(f"{shortened} of {len(rows)} questions are too long for the block: texts cut shorter")
    with progress(len(rows), "texts") as advance:
        found, notes = predict(trained, questions, task, settings.batch_size, advance)
    for note in notes:
        print(note)

    gold = [row.label for row in rows]
    figures = {name: scores(gold, given, task.labels) for name, given in found.items()}
    about = dict(
        out_dir=str(trained.folder), step=trained.meta["step"], settings=settings.as_dict()
    )
    write_json(output, about | dict(labels=task.labels, shortened=shortened, readings=figures))
    lines = [
        dict(id=row.id, question=question, label=row.label)
        | {name: given[i] for name, given in found.items()}
        for i, (row, question) in enumerate(zip(rows, questions, strict=True))
    ]
    write_jsonl(output.with_suffix(".jsonl"), lines)
    panels = {
        f"{name}: {each['accuracy']:.1%}": each["confusion"] for name, each in figures.items()
    }
    show(figures, task.labels)
    figure, notes = confusion_figure(panels, task.labels)
    write_figure(figure, [picture])
    for note in notes:
        print(note)
    print(f"figures: {output}, every text: {output.with_suffix('.jsonl')}, picture: {picture}")


def worded(task, settings):
    """The task with the instruction and the wording of the settings. UserError if it is wrong."""
    if settings.instruction is not None:
        task = task._replace(instruction=settings.instruction.replace("\\n", "\n"))
    if settings.wording:
        task = task._replace(wording=settings.wording.replace("\\n", "\n"))
    if problems := task.problems():
        raise UserError("\n".join(f"--{line}" for line in problems))
    return task


def show(figures, labels):
    """Print a confusion matrix with the metrics of each class for every reading, then a summary."""
    for name, found in figures.items():
        header = [name, *labels, "none", "precision", "recall", "F1"]
        rows = []
        for label, counts in zip(labels, found["confusion"], strict=True):
            of_class = found["classes"][label]
            shares = [f"{of_class[key]:.3f}" for key in ("precision", "recall", "f1")]
            rows.append([label, *counts, *shares])
        print(table(header, rows), end="\n\n")
    rows = [
        [
            name,
            found["count"],
            f"{found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}]",
            f"{found['macro_f1']:.3f}",
            found["none"],
        ]
        for name, found in figures.items()
    ]
    print(table(["read by", "texts", "accuracy", "macro F1", "none"], rows))
    print("rows: true labels, columns: predicted ones; [95 % interval]\n")


if __name__ == "__main__":
    run(main)
