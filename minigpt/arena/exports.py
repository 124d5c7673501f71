"""Exports of the ledger: battles, preference pairs and the leaderboard, as files to download.

    for text in EXPORTS["battles.jsonl"].write(ledger): …

To add a file, add an Export: its route (minigpt/arena/ui/app.py) and the rule that lets requests
through (minigpt/arena/access/page_filter.py) are made from EXPORTS.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import NamedTuple

from minigpt.arena.ratings import length_controlled, ratings
from minigpt.common.report import markdown_line
from minigpt.common.spreadsheet import csv_row


def jsonl(battles):
    """Yield each BattleRecord as a line of JSON, without what must stay private: the voter's id,
    and errors, which reveal the owner's network."""
    for battle in battles:
        record = asdict(battle)
        del record["voter"], record["hidden"]  # no hidden battle is exported
        for side in record["sides"]:
            del side["error"]
        yield json_line(record)


def markdown(battles):
    """Yield each BattleRecord as a part of a Markdown text, in which prompts and answers are code
    blocks: nothing in them is interpreted."""
    for battle in battles:
        moment = f"{datetime.fromtimestamp(battle.time, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        settings = {**battle.settings, "seed": battle.seed}
        facts = [battle.kind, moment, *(f"{n} {v}" for n, v in settings.items() if v is not None)]
        parts = [f"## Battle {battle.id}", _line(facts), _fenced(battle.prompt)]
        for place, side in enumerate(battle.sides):
            parts += [f"### {_heading(battle, place)}", _line(_facts(side)), _fenced(side.answer)]
        yield "\n\n".join(parts) + "\n\n"


def preference_pairs(battles):
    """Yield {"prompt", "chosen", "rejected"} for each side that lost to a chosen best side, as
    preference training reads them. Left out: pairs of equal answers, sides without an answer."""
    for battle in battles:
        if not isinstance(battle.choice, int) or battle.choice not in battle.answered:
            continue
        chosen = battle.sides[battle.choice].answer
        for side in battle.sides:
            if side.answered and side.answer != chosen:
                yield dict(prompt=battle.prompt, chosen=chosen, rejected=side.answer)


def _heading(battle, place):
    verdicts = {place: " – the best", "tie": " – a tie", "none": " – none was good"}
    letter, model = chr(ord("A") + place), markdown_line(battle.sides[place].model)
    return f"{letter}: {model}{verdicts.get(battle.choice, '')}"


def _facts(side):
    yield side.endpoint
    if side.checkpoint is not None:
        yield f"checkpoint {side.checkpoint}"
    if side.first_token_seconds is not None:
        yield f"first token after {side.first_token_seconds:.2f} s"
    if side.tokens_per_second is not None:
        yield f"{side.tokens_per_second:.1f} tokens/s"
    yield f"end: {side.end_reason}"


def _line(facts):
    return " · ".join(map(markdown_line, facts))


def _fenced(text):
    """Text in a code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def leaderboard_csv(ledger):
    """The ratings from blind, open and all votes, also those at equal length, as CSV for
    spreadsheets."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["votes", "model", "rating", "low", "high", "battles", "same_length"])
    for label, kind in (("blind", "blind"), ("open", "open"), ("all", None)):
        votes = ledger.votes(kind)
        decided = [vote.decided for vote in votes]
        by_name = length_controlled(decided, [vote.lengths for vote in votes]).by_name
        rows = ratings(decided, seed=0)
        writer.writerows(csv_row([label, *row, by_name[row.name]]) for row in rows)
    return "\ufeff" + text.getvalue()  # spreadsheets recognize UTF-8 by the byte order mark


class Export(NamedTuple):
    """A file to download. write(ledger): an iterable of its text, in parts."""

    media_type: str
    write: Callable


EXPORTS = {
    "battles.jsonl": Export("application/jsonl", lambda ledger: jsonl(ledger.each_battle())),
    "battles.md": Export("text/markdown", lambda ledger: markdown(ledger.each_battle())),
    "preferences.jsonl": Export(
        "application/jsonl",
        lambda ledger: map(json_line, preference_pairs(ledger.each_battle())),
    ),
    "leaderboard.csv": Export("text/csv", lambda ledger: [leaderboard_csv(ledger)]),
}


def json_line(value):
    """A value as a line of JSON."""
    return json.dumps(value, ensure_ascii=False) + "\n"
