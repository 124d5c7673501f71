"""The HTML and CSS of the arena's page: cards of answers, tables, notes.

strings: minigpt.arena.i18n. What a model wrote, or how an endpoint is called, is escaped: it is
shown as text.
"""

import re
from datetime import datetime
from html import escape

from minigpt.arena.battles import FILTERED
from minigpt.openai.answers import CUT_REASONS

SIDE_LETTERS = "ABCD"
FEW_BATTLES = 10  # a rating from fewer battles is marked as uncertain
HEALTHY = {"ok": "health_ok", "slow": "health_slow", "loading": "health_loading"}  # → strings
MAX_HISTORY_CHARS = 2000  # of a text in the history; the downloads have the whole text

HEADER = '<header class="page-header"><h1>MiniGPT Arena</h1></header>'

CSS = """
.gradio-container { width: 100% !important; max-width: min(1180px, 100vw) !important;
  margin: 0 auto !important; }
.gradio-container .form { background: none; border: 0; box-shadow: none; gap: 16px;
  overflow: visible; }
.gradio-container .block { overflow: visible !important; }
.page-header h1 { font-size: 22px; font-weight: 650; margin: 8px 0 0; line-height: 1.2;
  letter-spacing: .01em; color: var(--body-text-color); }
#page-about { margin-top: -10px; }
.quiet, .quiet p { color: var(--body-text-color-subdued) !important; line-height: 1.7; }
.quiet { max-width: 52em; }
.side > div, .side .prose { height: 100%; }
.side { flex: 1 1 240px !important; min-width: 240px !important; }
#chat-messages { border: 1px solid var(--border-color-primary); border-radius: 10px;
  background: var(--background-fill-primary); }
#arena-votes, #class-votes { justify-content: center; }
.gradio-container .row > button { flex-basis: auto; white-space: nowrap; }
.dark { color-scheme: dark; --color-accent: var(--primary-400); }
.form-title p { font-weight: 600; }
.inline-form { align-items: flex-end; }
.inline-form .form:has(#class-code) { flex: 0 1 320px !important; min-width: 160px !important; }
:is(#class-password, #admin-password) { max-width: 320px; margin: 0 !important; }
.progress { height: 8px; border-radius: 99px; overflow: hidden; margin-bottom: 6px;
  background: var(--border-color-primary); }
.progress i { display: block; height: 100%; background: var(--color-accent); }
.card { box-sizing: border-box; height: 100%; border: 1px solid var(--border-color-primary);
  border-radius: 10px; padding: 14px 18px; min-height: 6em;
  background: var(--background-fill-primary); }
.card .head { display: flex; justify-content: space-between; gap: 8px; font-weight: 600;
  color: var(--body-text-color); }
.card .letter { display: inline-block; min-width: 1.7em; text-align: center; border-radius: 6px;
  background: var(--color-accent-soft); color: var(--body-text-color); margin-right: 4px; }
.card .name { overflow-wrap: anywhere; }
.card .state { font-weight: 400; color: var(--body-text-color-subdued); }
.card .text { white-space: pre-wrap; overflow-wrap: anywhere; margin-top: 10px; font-size: 16px;
  line-height: 1.8;
  max-height: 26em; overflow-y: auto; color: var(--body-text-color); }
.card .note { margin-top: 8px; font-size: .9em; color: var(--body-text-color-subdued); }
.card details { margin-top: 8px; font-size: .9em; white-space: pre-wrap;
  color: var(--body-text-color-subdued); }
.card summary { cursor: pointer; }
.card.failed { border-color: var(--error-border-color, #dc2626); }
.card.failed .note { color: var(--error-text-color, #dc2626); }
.card.chosen { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
#chat-messages :is(.message-content, .md) { white-space: pre-wrap; overflow-wrap: anywhere; }
.data-table { overflow-x: auto; margin: 6px 0; }
.data-table table { border-collapse: collapse; width: 100%; }
.data-table :is(table, thead, tbody, tr) { border: 0 !important; }
.data-table th, .data-table td { padding: 7px 10px; text-align: left; vertical-align: top;
  white-space: nowrap; border: 0 !important; color: var(--body-text-color);
  border-bottom: 1px solid var(--border-color-primary) !important; }
.data-table th { font-weight: 600; color: var(--body-text-color-subdued); }
.data-table :is(td, th).number { text-align: right; font-variant-numeric: tabular-nums; }
.data-table .long { white-space: normal; overflow-wrap: anywhere; min-width: 10em; }
.data-table .quiet { color: var(--body-text-color-subdued); }
.badge { border-radius: 99px; padding: 1px 9px; font-size: .85em; white-space: nowrap; }
.badge.ok { background: #15803d; color: #fff; }
.badge:is(.slow, .loading, .unknown) { background: #a16207; color: #fff; }
.badge.bad { background: #b91c1c; color: #fff; }
.bar { position: relative; min-width: 140px; height: 20px; }
.bar i { position: absolute; top: 9px; height: 2px; background: var(--body-text-color-subdued); }
.bar b { position: absolute; top: 4px; width: 12px; height: 12px; border-radius: 50%;
  background: var(--color-accent); transform: translateX(-6px); }
.heat :is(td, th) { text-align: center !important; }
.heat .count { font-size: .85em; color: var(--body-text-color); }
.battle .card { min-height: 0; }
.battle { border-bottom: 1px solid var(--border-color-primary); padding: 12px 0; }
.battle .question { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--body-text-color); }
.battle .answers { display: grid; gap: 10px; margin-top: 8px;
  grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
@media (max-width: 640px) {  /* a phone: several buttons a line; tables that scroll say so */
  button:is([id^="chat-"], [id^="arena-"], [id^="vote-"]) { flex: 1 1 auto !important;
    min-width: max-content !important; padding: 8px 6px !important; font-size: 14px !important; }
  .data-table .wide { display: none; }
  .data-table th, .data-table td { padding: 6px; }
  .data-table::after { content: "⇆"; display: block; text-align: right;
    color: var(--body-text-color-subdued); }
}
"""


def side_card(strings, state, index, name=None, is_chosen=False, show_facts=False):
    """A side of a battle (a SideState). name: None while it is hidden. show_facts: also the speed
    and the end reason, which could reveal the model."""
    progress = strings[state.status] if state.status in ("waiting", "writing") else ""
    message = outcome(strings, state)
    if show_facts:
        message = " · ".join(filter(None, [message, facts(strings, state)]))
    has_failed = state.status == "failed" or state.blank_reason is not None
    kind = "card" + " failed" * has_failed + " chosen" * is_chosen
    return (
        f'<div class="{kind}" data-status="{escape(state.status)}"><div class="head">'
        f'<span>{side_label(index, name)}</span><span class="state">{escape(progress)}</span></div>'
        f'{_thoughts(strings, state.thoughts)}<div class="text">{escape(state.text)}</div>'
        f'<div class="note">{escape(message)}</div></div>'
    )


def side_label(index, name=None):
    """The letter of a side, as on its vote button, and its name if that is visible."""
    name = "" if name is None else f' <span class="name">{escape(name)}</span>'
    return f'<span class="letter">{SIDE_LETTERS[index]}</span>{name}'


def _thoughts(strings, thoughts):
    """What a model wrote before its answer, folded."""
    if not thoughts.strip():
        return ""
    title = escape(strings["thoughts"].format(n=len(thoughts)))
    return f"<details><summary>{title}</summary>{escape(thoughts.strip())}</details>"


def outcome(strings, state):
    """What is wrong with an answer, for people; "" if nothing is."""
    if state.status in ("failed", "stopped"):
        return strings.get(state.end_reason, strings["failed"])
    if state.blank_reason is not None:
        return strings[state.blank_reason].format(text=state.refusal.strip()[:300])
    if state.end_reason == "too long":
        return strings["too_long"]
    return strings["end_filtered"] if state.end_reason in FILTERED else ""


def chat_messages(strings, turns):
    """The turns of a chat (minigpt.arena.access.sessions) for gr.Chatbot. Gradio renders its values
    as HTML, even without Markdown, so all texts are escaped."""
    shown = []
    for turn in turns:
        state = turn.state
        shown.append({"role": "user", "content": _chat_html(turn.question)})
        if state.thoughts.strip():
            title = strings["thoughts"].format(n=len(state.thoughts))
            metadata = {"title": title, "status": "done"}
            thoughts = _chat_html(state.thoughts.strip())
            shown.append({"role": "assistant", "content": thoughts, "metadata": metadata})
        parts = [state.text.strip("\n"), outcome(strings, state)]
        if state.status in ("waiting", "writing"):
            parts = [state.text or "…"]
        text = "\n".join(filter(None, parts))
        shown.append({"role": "assistant", "content": _chat_html(text)})
    return shown


def _chat_html(text):
    """Text for gr.Chatbot, which removes blanks at the beginning of lines (inspect.cleandoc)."""
    text = escape(text.expandtabs(4), quote=False)
    return re.sub(r"^ +", lambda blanks: "&nbsp;" * len(blanks[0]), text, flags=re.MULTILINE)


def chat_summary(strings, battle):
    """What is to be said of an answer of the chat that has ended, as text."""
    (state,) = battle.snapshot()
    parts = [facts(strings, state)]
    if state.status == "failed":
        parts.insert(0, state.error)
    if battle.unsupported:
        names = ", ".join(battle.unsupported)
        parts.append(strings["unsupported_settings"].format(names=names))
    return " · ".join(parts)


def facts(strings, state):
    """The speed of a side and why it ended, as text."""
    parts = []
    if state.first_token_seconds is not None:
        parts.append(strings["first_token"].format(seconds=f"{state.first_token_seconds:.2f} s"))
    parts.append(speed(strings, state.elapsed, state.tokens_per_second))
    if state.status == "done" and state.end_reason not in ("stop", "too long", *FILTERED):
        is_cut = state.end_reason in CUT_REASONS
        reason = strings["end_length"] if is_cut else state.end_reason
        parts.append(strings["end_reason"].format(reason=reason))
    return " · ".join(parts)


def speed(strings, seconds, tokens_per_second):
    """The token rate, if there is one, and the total time, as text."""
    parts = [strings["total_time"].format(seconds=f"{seconds:.1f} s")]
    if tokens_per_second:
        parts.insert(0, strings["token_rate"].format(rate=f"{tokens_per_second:.0f}"))
    return " · ".join(parts)


def note(text):
    """A line of status text."""
    return f'<div class="quiet">{escape(text)}</div>' if text else ""


def download_links(*names):
    """Links to files of minigpt.arena.exports."""
    links = (f'<a href="download/{name}" download>{name}</a>' for name in names)
    return f'<div class="quiet">↓ {" · ".join(links)}</div>'


def table(header, rows, kind=""):
    """A table. header: pairs of a text and the kind of its column; rows: lists of cells, which are
    HTML."""
    head = "".join(f'<th class="{kind}">{escape(text)}</th>' for text, kind in header)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="data-table {kind}"><table><tr>{head}</tr>{body}</table></div>'


def cell(text, kind=""):
    """A cell of text. kind: "number" (aligned right), "long" (may wrap), "wide" (not on a phone),
    "quiet"."""
    return f'<td class="{kind}">{escape(str(text))}</td>'


def leaderboard(strings, ratings, controlled):
    """A table of Ratings, best first, with the intervals drawn on one common scale. controlled:
    LengthControlled of the same battles."""
    if not ratings:
        return note(strings["no_votes"])
    low = min(rating.low for rating in ratings)
    high = max(rating.high for rating in ratings)
    rows = []
    for rank, rating in enumerate(ratings, start=1):
        few = rating.battles < FEW_BATTLES
        left, right, point = (
            100 * (value - low) / ((high - low) or 1)
            for value in (rating.low, rating.high, rating.rating)
        )
        bar = f'<i style="left:{left:.1f}%;right:{100 - right:.1f}%"></i>'
        bar += f'<b style="left:{point:.1f}%"></b>'
        rows.append(
            [
                cell(rank, "number"),
                cell(rating.name),
                cell(f"{rating.rating:.0f}", "number"),
                f'<td class="wide"><div class="bar">{bar}</div></td>',
                cell(f"{rating.low:.0f} – {rating.high:.0f}", "number"),
                cell(f"{controlled.by_name[rating.name]:.0f}", "number"),
                cell(rating.battles, "number"),
                cell(strings["too_few"] if few else "", "quiet"),
            ]
        )
    model, rating, interval, battles = (
        strings[key] for key in ("model", "rating", "interval", "battles")
    )
    header = [("", "number"), (model, ""), (rating, "number"), ("", "wide")]
    header += [(interval, "number"), (strings["same_length"], "number")]
    header += [(battles, "number"), ("", "")]
    length = strings["length_help"].format(points=f"{controlled.points_of_twice:+.0f}")
    return table(header, rows) + note(f"{strings['rating_help']} {length}")


def heat_map(strings, names, rates, counts):
    """A table of the win rates of pairs: blue if the model of the row wins, red if it loses."""
    if len(names) < 2:
        return ""
    rows = []
    for i, name in enumerate(names):
        row = [cell(name)]
        for j in range(len(names)):
            if i == j or not counts[i][j]:
                row.append('<td class="quiet">–</td>')
                continue
            advantage = 2 * rates[i][j] - 1  # -1: always lost … 1: always won
            color = "37, 99, 235" if advantage > 0 else "220, 38, 38"
            share = f'{100 * rates[i][j]:.0f} % <span class="count">({counts[i][j]})</span>'
            shade = f"rgba({color}, {0.55 * abs(advantage):.2f})"
            row.append(f'<td style="background: {shade}">{share}</td>')
        rows.append(row)
    return f"<h3>{escape(strings['win_rates'])}</h3>" + table(
        [("", ""), *((name, "") for name in names)], rows, "heat"
    )


def history(strings, battles):
    """A list of BattleRecords with their questions and answers."""
    if not battles:
        return note(strings["nothing_found"])
    parts = []
    for battle in battles:
        sides = "".join(
            _history_card(strings, side, index, is_chosen=battle.choice == index)
            for index, side in enumerate(battle.sides)
        )
        parts.append(
            f'<div class="battle"><div class="quiet">{escape(_summary(strings, battle))}</div>'
            f'<div class="question">{escape(_truncated(battle.prompt))}</div>'
            f'<div class="answers">{sides}</div></div>'
        )
    return "".join(parts)


def _history_card(strings, side, index, is_chosen):
    missing = ""
    if not side.answered:
        blank = "blank_filtered" if side.end_reason in FILTERED else "blank_empty"
        missing = strings["failed" if side.error else blank]
    return (
        f'<div class="card{" chosen" * is_chosen}"><div class="head">'
        f"<span>{side_label(index, side.model)}</span>"
        f'<span class="state">{escape(strings["chosen"]) * is_chosen}</span></div>'
        f'<div class="text">{escape(_truncated(side.answer))}</div>'
        f'<div class="note">{escape(missing)}</div></div>'
    )


def _truncated(text):
    return text if len(text) <= MAX_HISTORY_CHARS else text[:MAX_HISTORY_CHARS] + " …"


def _summary(strings, battle):
    """The id, time and kind of a battle, and the vote if it was for no side."""
    vote = ""
    if battle.choice in ("tie", "none"):
        vote = vote_label(strings, battle.choice, len(battle.sides))
    moment = datetime.fromtimestamp(battle.time).strftime("%Y-%m-%d %H:%M")
    parts = [f"#{battle.id}", moment, strings[f"kind_{battle.kind}"], vote]
    return " · ".join(filter(None, parts))


def vote_label(strings, choice, n_sides):
    """The label of a vote, one of ratings.vote_choices(n_sides)."""
    if choice == "tie":
        return strings["vote_tie"]
    if choice == "none":
        return strings["vote_none_of_2" if n_sides == 2 else "vote_none"]
    return strings["vote_side"].format(side=SIDE_LETTERS[choice])


def endpoints(strings, rows):
    """A table of endpoints. rows: (name, address or None for this machine,
    minigpt.arena.endpoints.Health or None)."""
    cells = []
    for name, address, health in rows:
        if health is None:
            badge, latency, models = "unknown", "", ""
            status = strings["not_checked"]
        else:
            badge = health.status if health.status in HEALTHY else "bad"
            status, latency = _health(strings, health.status), f"{health.latency_ms:.0f} ms"
            models = ", ".join(health.models) or health.message
        cells.append(
            [
                cell(name),
                f'<td><span class="badge {badge}">{escape(status)}</span></td>',
                cell(latency, "number"),
                cell(models, "long"),
                cell(address or strings["this_machine"], "quiet"),
            ]
        )
    header = [(strings["name"], ""), (strings["health"], ""), (strings["latency"], "number")]
    header += [(strings["served_models"], "long"), (strings["address"], "")]
    return table(header, cells)


def _health(strings, status):
    """The status of a Health, as text."""
    known = HEALTHY.get(status)
    return strings[known] if known else f"{strings['health_bad']} ({status})"
