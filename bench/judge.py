"""How well wrong pairs are found: by the rules alone, and by a judge beside them.

    python bench/judge.py --source=wiki/ --input=qa.jsonl                    # the rules alone
    python bench/judge.py --source=wiki/ --input=qa.jsonl --base_url=http://localhost:1234/v1

Takes pairs that are right (their ids are those of the texts), plants errors of four kinds
(minigpt/synthesis/verification/planted.py), and counts what the rules of sft_generate.py and the
judge of --verify drop. precision: the planted ones among the dropped; recall: the dropped ones
among the planted. Right and planted pairs are equally many for the precision, so a rule that drops
at random has 50 %.
"""

import pathlib
import random
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

RIGHT = "right"


class Settings:
    source: str = ""  # the texts
    input: str = ""  # right pairs about them, with the texts' ids
    limit: int = 0  # only so many pairs of each kind; 0: all
    base_url: list[str] = []  # a server that judges; none: the rules alone
    api_key_env: list[str] = []
    model: str | None = None
    workers: int = 4
    seed: int = 0


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table
from minigpt.data.formats import parse_qa
from minigpt.data.pipeline import read_entries, read_records
from minigpt.synthesis.filters import Rules, filter_pairs
from minigpt.synthesis.parsing import QA
from minigpt.synthesis.pool import Pool
from minigpt.synthesis.servers import read_servers
from minigpt.synthesis.verification.judge import SCHEMA, Judge, NoVerdict
from minigpt.synthesis.verification.planted import KINDS, plant_errors


def main():
    """Pairs → tables."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    texts = {entry.id: entry for entry in read_entries(settings.source)}
    pairs = [pair for _, pair, _ in read_records([settings.input], parse_qa) if pair.id in texts]
    if not pairs:
        raise UserError(f"input={settings.input}: no pair has the id of a text in the source")
    kinds = defaultdict(list)
    kinds[RIGHT] = pairs
    for kind, pair in plant_errors(pairs, settings.seed):
        kinds[kind].append(pair)
    cases = []
    for kind, found in kinds.items():
        random.Random(settings.seed).shuffle(found)
        cases += [(kind, pair) for pair in found[: settings.limit or None]]
    finders = {"rules": lambda case: is_dropped(case[1], texts)}
    if settings.base_url:
        servers = read_servers(settings.base_url, settings.api_key_env)
        pool = Pool(servers, settings.model, workers=settings.workers)
        pool.check()
        judge = Judge(lambda messages, _: pool.ask(messages, temperature=0.01, schema=SCHEMA))
        finders[f"judge ({pool.model})"] = lambda case: is_judged_wrong(judge, case[1], texts)
    totals, dropped = Counter(kind for kind, _ in cases), {}
    for name, find in finders.items():
        with ThreadPoolExecutor(settings.workers) as executor:
            wrong = list(executor.map(find, cases))
        dropped[name] = {number for number, is_wrong in enumerate(wrong) if is_wrong}
    if len(dropped) > 1:
        dropped["both"] = set.union(*dropped.values())
    print(shown(cases, totals, dropped))


def is_dropped(pair, texts):
    """Whether the rules drop it."""
    entry, wide = texts[pair.id], Rules(n_min=0, question_max=10**6, answer_max=10**6)
    return not filter_pairs([QA(pair.question, pair.answer)], f"{entry.title}\n{entry.text}", wide)[
        0
    ]


def is_judged_wrong(judge, pair, texts):
    """Whether the judge drops it; no verdict drops it, too."""
    entry = texts[pair.id]
    try:
        return not judge(entry.title, entry.text, [QA(pair.question, pair.answer)]).kept
    except NoVerdict:
        return True


def shown(cases, totals, dropped):
    """The table: recall of each kind, what is dropped of the right ones, precision."""
    n_wrong = sum(n for kind, n in totals.items() if kind != RIGHT)
    rows = []
    for kind in (RIGHT, *KINDS):
        shares = [sum(cases[i][0] == kind for i in found) for found in dropped.values()]
        whole = totals[kind]
        name = "right, dropped by mistake" if kind == RIGHT else kind
        rows.append([name, f"{whole:,}", *(f"{n / whole:.1%}" if whole else "-" for n in shares)])
    recalls, precisions = [], []
    for found in dropped.values():
        hits = sum(cases[i][0] != RIGHT for i in found) / n_wrong
        alarms = sum(cases[i][0] == RIGHT for i in found) / totals[RIGHT]
        recalls.append(f"{hits:.1%}")
        precisions.append(f"{hits / (hits + alarms):.1%}" if hits + alarms else "-")
    rows += [["recall", f"{n_wrong:,}", *recalls], ["precision", "", *precisions]]
    return table(["", "pairs", *dropped], rows)


if __name__ == "__main__":
    run(main)
