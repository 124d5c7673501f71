"""The arena's page, as far as it is more than buttons: pieces of HTML. Whatever a model wrote, or
an endpoint calls itself, is escaped: it is shown as text."""

from html import escape

SIDES = "ABCD"
FEW_BATTLES = 10  # below so many a rating says little
SHOWN_CHARS = 2000  # of a text in the history; the downloads have all of it

CSS = """
.side { flex: 1 1 240px !important; min-width: 240px !important; }
.card { box-sizing: border-box; height: 100%; border: 1px solid var(--border-color-primary);
  border-radius: 10px; padding: 12px 14px; min-height: 9em;
  background: var(--background-fill-primary); }
.card .head { display: flex; justify-content: space-between; gap: 8px; font-weight: 600;
  color: var(--body-text-color); }
.card .state { font-weight: 400; color: var(--body-text-color-subdued); }
.card .text { white-space: pre-wrap; overflow-wrap: anywhere; margin-top: 8px; line-height: 1.6;
  max-height: 26em; overflow-y: auto; color: var(--body-text-color); }
.card .note { margin-top: 8px; font-size: .9em; color: var(--body-text-color-subdued); }
.card.failed { border-color: var(--error-border-color, #dc2626); }
.card.failed .note { color: var(--error-text-color, #dc2626); }
.card.chosen { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.sheet { overflow-x: auto; }
.sheet table { border-collapse: collapse; width: 100%; }
.sheet :is(table, thead, tbody, tr) { border: 0 !important; }
.sheet th, .sheet td { padding: 6px 10px; text-align: left; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
  color: var(--body-text-color); }
.sheet td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.sheet .quiet, .quiet { color: var(--body-text-color-subdued); }
.badge { border-radius: 99px; padding: 1px 9px; font-size: .85em; white-space: nowrap; }
.badge.ok { background: #16a34a; color: #fff; }
.badge.slow, .badge.unknown { background: #ca8a04; color: #fff; }
.badge.bad { background: #dc2626; color: #fff; }
.bar { position: relative; min-width: 140px; height: 20px; }
.bar i { position: absolute; top: 9px; height: 2px; background: var(--body-text-color-subdued); }
.bar b { position: absolute; top: 4px; width: 12px; height: 12px; border-radius: 50%;
  background: var(--color-accent); transform: translateX(-6px); }
.heat td { text-align: center !important; }
.battle .card { min-height: 0; }
.battle { border-bottom: 1px solid var(--border-color-primary); padding: 12px 0; }
.battle .question { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--body-text-color); }
.battle .answers { display: grid; gap: 10px; margin-top: 8px;
  grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
@media (max-width: 640px) {  /* several buttons a line, not one */
  button:is([id^="chat-"], [id^="arena-"], [id^="vote-"]) { flex: 1 1 66px !important;
    min-width: 66px !important; padding: 8px 2px !important; font-size: 14px !important; }
}
"""


def side_card(words, state, place, name=None, chosen=False, told=False):
    """A side of a battle. name: shown where it may be; told: how fast it was, and why it ended."""
    label = name if name is not None else words["side"].format(side=SIDES[place])
    stands = words[state.status] if state.status in ("waiting", "writing") else ""
    note = ""
    if state.status in ("failed", "stopped"):
        note = words.get(state.end_reason, words["failed"])
    elif state.end_reason == "too long":
        note = words["too_long"]
    if told:
        note = " · ".join(filter(None, [note, facts(words, state)]))
    kind = "card" + " failed" * (state.status == "failed") + " chosen" * chosen
    return (
        f'<div class="{kind}" data-status="{escape(state.status)}"><div class="head">'
        f'<span>{escape(label)}</span><span class="state">{escape(stands)}</span></div>'
        f'<div class="text">{escape(state.text)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def facts(words, state):
    """How fast a side was, and why it ended, in words."""
    parts = []
    if state.first_token_seconds is not None:
        parts.append(words["first_token"].format(seconds=f"{state.first_token_seconds:.2f} s"))
    if state.tokens_per_second:
        parts.append(words["speed"].format(rate=f"{state.tokens_per_second:.0f}"))
    parts.append(words["took"].format(seconds=f"{state.elapsed:.1f} s"))
    if state.end_reason and state.status == "done":
        parts.append(words["ended"].format(reason=state.end_reason))
    return " · ".join(parts)


def note(text):
    """A line that says how things stand."""
    return f'<div class="quiet">{escape(text)}</div>' if text else ""


def sheet(header, rows, kind=""):
    """A table. header: texts; rows: of cells that are HTML already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="sheet {kind}"><table><tr>{head}</tr>{body}</table></div>'


def cell(text, kind=""):
    """A cell of text."""
    return f'<td class="{kind}">{escape(str(text))}</td>'


def leaderboard(words, ratings):
    """Ratings, the best first, each with its interval drawn on a scale that all share."""
    if not ratings:
        return note(words["no_votes"])
    low = min(rating.low for rating in ratings)
    high = max(rating.high for rating in ratings)
    rows = []
    for place, rating in enumerate(ratings, start=1):
        few = rating.battles < FEW_BATTLES
        left, right, point = (
            100 * (value - low) / ((high - low) or 1)
            for value in (rating.low, rating.high, rating.rating)
        )
        bar = f'<i style="left:{left:.1f}%;right:{100 - right:.1f}%"></i>'
        bar += f'<b style="left:{point:.1f}%"></b>'
        rows.append(
            [
                cell(place, "number"),
                cell(rating.name),
                cell(f"{rating.rating:.0f}", "number"),
                f'<td><div class="bar">{bar}</div></td>',
                cell(f"{rating.low:.0f} – {rating.high:.0f}", "number"),
                cell(rating.battles, "number"),
                cell(words["too_few"] if few else "", "quiet"),
            ]
        )
    header = ["", words["model"], words["rating"], "", words["interval"], words["battles"], ""]
    return sheet(header, rows)


def heat_map(words, names, rates, counts):
    """Win rates between pairs: blue where the row's model wins, red where it loses."""
    if len(names) < 2:
        return ""
    rows = []
    for i, name in enumerate(names):
        row = [cell(name)]
        for j in range(len(names)):
            if i == j or not counts[i][j]:
                row.append('<td class="quiet">–</td>')
                continue
            lean = 2 * rates[i][j] - 1  # -1: always lost … 1: always won
            color = "37, 99, 235" if lean > 0 else "220, 38, 38"
            share = f'{100 * rates[i][j]:.0f} % <span class="quiet">({counts[i][j]})</span>'
            shade = f"rgba({color}, {0.55 * abs(lean):.2f})"
            row.append(f'<td style="background: {shade}">{share}</td>')
        rows.append(row)
    return f"<h3>{escape(words['win_rates'])}</h3>" + sheet(["", *names], rows, "heat")


def history(words, battles):
    """BattleRecords, each with its question and answers."""
    if not battles:
        return note(words["nothing_found"])
    parts = []
    for battle in battles:
        sides = "".join(
            f'<div class="card{" chosen" * (battle.choice == place)}"><div class="head">'
            f"<span>{escape(side.model)}</span>"
            f'<span class="state">{escape(words["chosen"]) * (battle.choice == place)}</span></div>'
            f'<div class="text">{escape(_clipped(side.answer))}</div></div>'
            for place, side in enumerate(battle.sides)
        )
        parts.append(
            f'<div class="battle"><div class="quiet">{escape(_standing(words, battle))}</div>'
            f'<div class="question">{escape(_clipped(battle.prompt))}</div>'
            f'<div class="answers">{sides}</div></div>'
        )
    return "".join(parts)


def _clipped(text):
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " …"


def _standing(words, battle):
    """A battle's number and kind, and its verdict where no side was chosen."""
    none = words["none_2"] if len(battle.sides) == 2 else words["none_n"]
    verdict = {"tie": words["tie"], "none": none}.get(battle.choice, "")
    return " · ".join(filter(None, [f"#{battle.id}", words[f"only_{battle.kind}"], verdict]))


def endpoints(words, rows):
    """rows: (name, address or None for this machine, minigpt.arena.endpoints.Health or None)."""
    shown = []
    for name, address, health in rows:
        if health is None:
            badge, latency, serves = "unknown", "", ""
            status = words["not_checked"]
        else:
            badge = health.status if health.status in ("ok", "slow") else "bad"
            status, latency = health.status, f"{health.latency_ms:.0f} ms"
            serves = ", ".join(health.models) or health.message
        shown.append(
            [
                cell(name),
                f'<td><span class="badge {badge}">{escape(status)}</span></td>',
                cell(latency, "number"),
                cell(serves),
                cell(address or words["here"], "quiet"),
            ]
        )
    header = [words[key] for key in ("name", "health", "latency", "serves", "address")]
    return sheet(header, shown)
