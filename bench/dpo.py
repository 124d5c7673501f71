"""What DPO does to a small model: which answers it prefers, and what it forgets.

    python bench/dpo.py --texts=TEXTS --pairs=PAIRS.jsonl   # trains a base and fine-tunes it first
    python bench/dpo.py --pairs=PAIRS.jsonl --init_from=out/sft --sft_data=data/processed_sft

Makes preference pairs of the question–answer pairs (the right answer against another question's, a
cut one and one that repeats itself: --from_qa of data/prepare_dpo.py), trains by config/dpo.py with
each of --betas and --learning_rates, and prints a table, the run before DPO first:

    another, cut, loop    share of held-out pairs, by what is wrong with the rejected answer, of
                          which the run gives the right one the higher log-probability, both without
                          regard to length; in brackets a token
    margin, kl            as train.py says them, at the end, over held-out pairs
    perplexity            over the held-out blocks of fine-tuning
    Rouge-L               of the answers to held-out questions, characters; and how long they are,
                          characters written by characters wanted

Every command is printed; what they print goes to OUT_DIR/dpo.log. Judged is the last checkpoint of
each run, not its best.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, run
from minigpt.common.report import table
from minigpt.common.scripts import call
from minigpt.models import checkpoint
from minigpt.training.dpo import Pairs, answer_logprobs


class Settings:
    texts: str = ""  # texts for the base, as data/prepare.py takes them
    pairs: str = ""  # question–answer pairs, as data/prepare_sft.py takes them
    init_from: str = ""  # a fine-tuned run to begin with; "": train one
    sft_data: str = ""  # its blocks; "": prepare them
    minutes: float = 3.0  # of pretraining, and as many of fine-tuning
    steps: int = 60  # of each DPO run
    betas: list[str] = ["0.1", "0.5"]
    learning_rates: list[str] = ["1e-4", "1e-3"]
    limit: int = 100  # held-out questions that are answered
    out_dir: str = "out/bench_dpo"  # data and runs


KINDS = ("another", "cut", "loop")
SMALL = ["--n_layer=2", "--n_head=2", "--n_embd=128", "--block_size=128", "--sample_prompt="]


def main():
    settings = configure(Settings, doc=__doc__)
    if not settings.pairs or not (settings.texts or settings.init_from):
        raise UserError("expected --pairs=PATH, and --texts=PATH or --init_from=RUN")
    folder = pathlib.Path(settings.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    base, sft_data = fine_tuned(settings, folder)
    block_size = checkpoint.read_meta(base)["model"]["block_size"]
    made, data = folder / "preferences.jsonl", folder / "dpo_data"
    made.unlink(missing_ok=True)
    words = [f"--from_qa={settings.pairs}", f"--input={made}", f"--dataset={data}"]
    tokenizer = checkpoint.read_meta(base)["tokenizer"]
    words += [f"--block_size={block_size}", f"--tokenizer={tokenizer}"]
    call("data/prepare_dpo.py", *words, log=folder / "dpo.log")

    rows = [row_of(settings, folder, "before", base, data, sft_data)]
    for beta in settings.betas:
        for rate in settings.learning_rates:
            out = folder / f"beta{beta}_lr{rate}"
            words = ["config/dpo.py", f"--dataset={data}", f"--init_from={base}", "--epochs=none"]
            words += [f"--max_iters={settings.steps}", f"--eval_interval={settings.steps // 3}"]
            words += [f"--out_dir={out}", "--overwrite=true", f"--dpo_beta={beta}"]
            words += [f"--learning_rate={rate}", f"--dpo_guard_dataset={sft_data}"]
            words += ["--eval_iters=20", "--sample_prompt=", "--warmup_iters=5"]
            call("train.py", *words, "--dpo_max_forgetting=none", log=folder / "dpo.log")
            rows.append(row_of(settings, folder, f"β {beta}, lr {rate}", out, data, sft_data))
    header = ["", *KINDS, "margin", "kl", "perplexity", "Rouge-L", "length"]
    print(markdown(header, rows))


def fine_tuned(settings, folder):
    """(run, its blocks), trained where none is given."""
    if settings.init_from:
        meta = checkpoint.read_meta(settings.init_from)
        return pathlib.Path(settings.init_from), settings.sft_data or meta["dataset"]
    texts, pairs, log = folder / "texts", folder / "sft_data", folder / "dpo.log"
    size = "--block_size=128"
    call("data/prepare.py", f"--input={settings.texts}", f"--dataset={texts}", size, log=log)
    call("data/prepare_sft.py", f"--input={settings.pairs}", f"--dataset={pairs}", size, log=log)
    limits = [f"--max_minutes={settings.minutes}", "--max_iters=1000000", "--overwrite=true"]
    base, tuned = folder / "base", folder / "sft"
    words = ["config/cpu_small.py", *SMALL, *limits, f"--dataset={texts}", f"--out_dir={base}"]
    call("train.py", *words, log=log)
    words = ["config/cpu_small_sft.py", "--block_size=128", "--sample_prompt=", *limits]
    words += [f"--dataset={pairs}", f"--init_from={base}", f"--out_dir={tuned}"]
    call("train.py", *words, log=log)
    return tuned / "best", pairs


def row_of(settings, folder, name, run_folder, data, sft_data):
    """A run's row of the table."""
    trained = checkpoint.load(run_folder)
    pairs = Pairs(data, "val", trained.tokenizer)
    sums, lengths = answer_logprobs(trained.model, pairs)
    lines = (pathlib.Path(data) / "val.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    cells = [name]
    for kind in KINDS:
        chosen = [i for i, found in enumerate(kinds) if found == kind]
        whole, each = (
            (part[chosen, 0] > part[chosen, 1]).mean() for part in (sums, sums / lengths)
        )
        cells.append(f"{whole:.0%} ({each:.0%})")
    log = [] if name == "before" else (run_folder / "log.jsonl").read_text("utf-8").splitlines()
    told = json.loads(log[-1]) if log else dict(margin=0.0, kl=0.0)
    cells += [f"{told['margin']:.2f}", f"{told['kl']:.3f}"]

    figures, answers = folder / "perplexity.json", folder / "answers.jsonl"
    words = [f"--out_dir={run_folder}", f"--dataset={sft_data}", f"--output={figures}"]
    call("evaluations-perplexity.py", *words, log=folder / "dpo.log")
    questions = pathlib.Path(sft_data) / "val.jsonl"
    words = [f"--out_dir={run_folder}", f"--input={questions}", f"--limit={settings.limit}"]
    words += [f"--output={answers}", "--show=0", "--max_new_tokens=48"]
    call("evaluations-RougeL.py", *words, log=folder / "dpo.log")
    perplexity = json.loads(figures.read_text(encoding="utf-8"))["tokens"]["perplexity"]
    rouge = json.loads(answers.with_suffix(".json").read_text(encoding="utf-8"))["all"]
    cells += [f"{perplexity:.0f}", f"{rouge['rouge_l_chars']['mean']:.3f}"]
    cells.append(f"{rouge['length_ratio']:.2f}")
    print(table(["", *KINDS, "margin", "kl", "perplexity", "Rouge-L", "length"], [cells]))
    return cells


def markdown(header, rows):
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    run(main)
