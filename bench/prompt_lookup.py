"""Speed of generation with prompt lookup, compared with none.

    python quickstart.py                                        # makes out/quickstart_sft
    python bench/prompt_lookup.py --out_dir=out/quickstart_sft --input=sft/sft_saves.jsonl
    python bench/prompt_lookup.py --out_dir=out/quickstart --input=data/sample --max_new_tokens=200

The run answers the same examples, or continues their first sentences, with each number of
draft_tokens and of readers. Rounds alternate; medians are shown. "Kept" is the share of the drafted
tokens that the model writes itself, "the same" the share of the texts that are the same as without.
"""

import itertools
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = "sft/sft_saves.jsonl"  # examples, as evaluations-RougeL.py reads them
    limit: int = 100  # so many of them, drawn at random
    draft_tokens: str = "4,8,16"  # compared with 0
    readers: str = "1,8"  # texts at the same time
    temperature: float = 0.0
    top_k: int = 20
    max_new_tokens: int = 128
    kernels: str = "auto"  # as for sample.py
    rounds: int = 3  # of all cases, alternating


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype", doc=__doc__, quiet=True)
    if problems := settings.below(limit=1, rounds=1):
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table
from minigpt.data.prompts import stop_ids
from minigpt.evaluation.examples import draw, example_ids, read_examples
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference.engine import Engine, Request


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    requests = make_requests(trained, settings)
    readers, draft_tokens = (
        [int(number) for number in numbers.split(",")]
        for numbers in (settings.readers, settings.draft_tokens)
    )
    cases = list(itertools.product(readers, [0, *draft_tokens]))
    rates, tickets = {case: [] for case in cases}, {}
    for _ in range(settings.rounds):
        for readers, draft_tokens in cases:
            engine = Engine(
                trained.model, trained.tokenizer.n_vocab, readers, draft_tokens=draft_tokens
            )
            began = time.perf_counter()
            found = engine.generate(requests)
            seconds = time.perf_counter() - began
            rates[readers, draft_tokens].append(sum(len(t.ids) for t in found) / seconds)
            tickets[readers, draft_tokens] = found
    print(table(HEADER, [row(case, rates, tickets) for case in cases]))


def make_requests(trained, settings):
    """The engine's requests for the examples."""
    examples, _ = read_examples(settings.input, trained.prompt_format)
    return [
        Request(
            example_ids(trained.tokenizer, trained.prompt_format, example),
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            seed=number,
            stop_ids=stop_ids(trained.tokenizer),
        )
        for number, example in enumerate(draw(examples, settings.limit, seed=0))
    ]


HEADER = ["readers", "draft_tokens", "tokens/s", "÷ none", "drafted", "kept", "the same"]


def row(case, rates, tickets):
    """The line of a case in the table."""
    readers, _ = case
    rate, without = (statistics.median(rates[each]) for each in (case, (readers, 0)))
    found = tickets[case]
    n_drafted, n_accepted = (sum(getattr(t, n) for t in found) for n in ("n_drafted", "n_accepted"))
    same = sum(a.ids == b.ids for a, b in zip(found, tickets[readers, 0], strict=True))
    return [
        *map(str, case),
        f"{rate:.0f}",
        f"{rate / without:.2f}",
        f"{n_drafted / sum(len(t.ids) for t in found):.2f}",
        f"{n_accepted / max(1, n_drafted):.2f}",
        f"{same}/{len(found)}",
    ]


if __name__ == "__main__":
    run(main)
