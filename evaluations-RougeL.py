"""How close a run's answers are to the references: ROUGE-L, exact matches, length.

    python evaluations-RougeL.py --out_dir=out/sft --input=qa.jsonl
    python evaluations-RougeL.py --out_dir=out/sft --input=qa.jsonl --limit=200 --seed=7
    python evaluations-RougeL.py --out_dir=out/pretrain --input=wiki.jsonl
    python evaluations-RougeL.py --out_dir=out/pretrain --input=three.jsonl     # prompt, reference

A question-answering run gets each question, and the reference is the answer. A chat run gets each
conversation up to the assistant's last turn, which is the reference. A pretrained run gets each
entry's first sentence, and the reference is the rest. Records {"prompt": …, "reference": …} give
both themselves, for a run of any kind. Training examples and held-out examples have separate rows:
the first show what the run has memorised, the second what it has learned.
"""

from pathlib import Path

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

SHOWN = 200  # characters of an answer in the terminal; the file has all of it
FEW = 20  # at most so many answers are all printed


class Settings:
    input: str = ""  # files or folders with pairs, conversations or entries, comma-separated
    limit: int | None = None  # a random subset of this size; none: all
    output: str = ""  # FILE.jsonl for the answers; the scores are in FILE.json beside it;
    #                   "": rouge.jsonl in out_dir
    seed: int = 1337  # of that subset, of sampling and of the bootstrap
    max_new_tokens: int = 128  # longest answer, in tokens
    temperature: float = 0.0  # 0: greedy, so the scores are reproducible
    top_k: int = 0  # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the most likely tokens with this total probability; 1: all
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the text are less likely
    batch_size: int = 16  # answers at once; changes the speed, not the answers
    show: int = 3  # how many of the best and of the worst to print; 20 answers or fewer are all
    #                printed, in the order of the file; 0: none


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype kernels", doc=__doc__, quiet=True)
    if problems := settings.below(batch_size=1, show=0, limit=1, seed=0):
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import (
    ENDED_AT_ONCE,
    check_writable,
    progress,
    table,
    write_json,
    write_jsonl,
)
from minigpt.evaluation.examples import (
    HELD_OUT,
    OTHER,
    SEEN,
    draw,
    membership,
    read_examples,
    write_answers,
)
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.evaluation.rouge import score, summary
from minigpt.inference.engine import Engine


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    output = Path(settings.output or trained.folder / "rouge.jsonl")
    if output.suffix != ".jsonl":
        raise UserError(f"--output={output}: expected a name that ends in .jsonl")
    for path in (output, output.with_suffix(".json")):
        check_writable(path)

    examples, skipped = read_examples(settings.input, prompt_format)
    if skipped:
        print(f"{skipped} entries have nothing after their first sentence: left out")
    if not examples:
        raise UserError(f"{settings.input}: nothing here to answer")
    examples = draw(examples, settings.limit, settings.seed)
    try:
        known = membership(examples, trained.meta["dataset"], tokenizer, prompt_format)
    except UserError as error:
        print(f"training and held-out examples cannot be distinguished: {error}")
        known = [OTHER] * len(examples)

    engine = Engine(trained.model, tokenizer.n_vocab, settings.batch_size)
    with progress(len(examples), "answers") as advance:
        answers = write_answers(
            engine,
            tokenizer,
            prompt_format,
            examples,
            settings.seed,
            on_end=advance,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
        )
    rows = [
        dict(
            id=example.id,
            question=example.prompt,
            reference=example.reference,
            prediction=answer,
            finish_reason=reason,
            standing=standing,
            **score(answer, example.reference),
        )
        for example, standing, (answer, reason) in zip(examples, known, answers, strict=True)
    ]
    write_jsonl(output, rows)
    figures = {"all": summary(rows, settings.seed)}
    for standing in (SEEN, HELD_OUT, OTHER):
        part = [row for row in rows if row["standing"] == standing]
        if part and (standing != OTHER or len(part) < len(rows)):  # OTHER alone would equal "all"
            figures[standing] = summary(part, settings.seed)
    about = dict(
        out_dir=str(trained.folder), step=trained.meta["step"], settings=settings.as_dict()
    )
    write_json(output.with_suffix(".json"), about | figures)
    if settings.show and len(rows) <= FEW:
        show_all(rows)
    else:
        show_ends(rows, settings.show)
    show_figures(figures)
    empty = sum(not row["prediction"] and row["finish_reason"] == "stop" for row in rows)
    if empty:
        print(f"{empty} of {len(rows)} answers are empty: {ENDED_AT_ONCE}\n")
    print(f"answers: {output}, figures: {output.with_suffix('.json')}")


def show_all(rows):
    """Print every answer, in the order of the file."""
    for number, row in enumerate(rows, 1):
        show_row(str(number), row)
    print()


def show_ends(rows, count):
    """Print the best and the worst answers by ROUGE-L over characters, without overlap."""
    ranked = sorted(rows, key=lambda row: -row["rouge_l_chars"])
    count = min(count, len(ranked) // 2)
    for row in ranked[:count]:
        show_row("best", row)
    for row in ranked[len(ranked) - count :]:
        show_row("worst", row)
    print()


def show_row(name, row):
    """Print an answer with its ROUGE-L over characters and over words."""
    scores = f"{row['rouge_l_chars']:.3f} (words {row['rouge_l_words']:.3f})"
    print(f"{name} {scores}  {in_a_line(row['question'])}")
    print(f"    reference   {in_a_line(row['reference'])}")
    print(f"    prediction  {in_a_line(row['prediction'])}")


def in_a_line(text):
    """`text` without line breaks, SHOWN characters at most."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def show_figures(figures):
    def cell(value):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    header = ["", "count", "Rouge-L words", "Rouge-L characters", "exact", "length"]
    rows = [
        [
            name,
            found["count"],
            cell(found["rouge_l_words"]),
            cell(found["rouge_l_chars"]),
            f"{found['exact_match']:.1%}",
            f"{found['length_ratio']:.2f}",
        ]
        for name, found in figures.items()
    ]
    print(table(header, rows))
    print("mean [95 % bootstrap interval]; length: characters written / characters wanted\n")


if __name__ == "__main__":
    run(main)
