"""The HTML of tokens: coloured by their probability, with the likeliest ones on a tap; a text cut
into tokens by several vocabularies.

A token is a <span> that can have the focus; what belongs to it is shown while it has it, by CSS
alone. All texts are escaped.
"""

import math
from html import escape

from minigpt.arena.html import note
from minigpt.arena.window.probabilities import after_sampling, bits, summary

SHOWN = 10  # likeliest tokens that are listed
LEVELS = 8  # of colour, a level for each bit of surprise
BLANKS = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\u3000": "⟨U+3000⟩"})
PIECES = 4  # colours of the pieces of a cut text, in turn

CSS = """
.tokens { line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05em;
  color: var(--body-text-color); margin: 8px 0; }
.tokens .t { border-radius: 4px; padding: 2px 0; cursor: pointer; outline-offset: 1px;
  box-shadow: inset -1px 0 0 var(--background-fill-primary); }
.tokens .t:focus { outline: 2px solid var(--color-accent); }
.tokens .t > .pop { display: none; }
.tokens .t:focus > .pop { display: block; position: fixed; z-index: 50; left: 50%; bottom: 14px;
  transform: translateX(-50%); width: min(430px, calc(100vw - 48px)); padding: 10px 14px;
  white-space: pre-wrap; font: 13px/1.55 monospace; border-radius: 10px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color); box-shadow: 0 6px 24px rgba(0, 0, 0, .3); }
.pop b { font: 600 14px/1.6 system-ui, sans-serif; }
.pop table { border-collapse: collapse; width: 100%; margin-top: 4px; }
.pop :is(table, tr, td, th) { border: 0 !important; padding: 0 6px 0 0; }
.pop :is(td, th) { text-align: right; vertical-align: bottom; font-weight: 400;
  color: var(--body-text-color); }
.pop :is(td, th):first-child { text-align: left; }
.pop td { white-space: nowrap; }
.pop td:first-child { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 5em; }
.pop th, .pop .out td { color: var(--body-text-color-subdued); }
.pop .own td { font-weight: 700; }
.tokens .p0 { background: rgba(22, 163, 74, .42); }
.tokens .p1 { background: rgba(22, 163, 74, .2); }
.tokens .p2 { background: rgba(202, 138, 4, .18); }
.tokens .p3 { background: rgba(202, 138, 4, .36); }
.tokens .p4 { background: rgba(234, 88, 12, .32); }
.tokens .p5 { background: rgba(234, 88, 12, .48); }
.tokens .p6 { background: rgba(220, 38, 38, .44); }
.tokens .p7 { background: rgba(220, 38, 38, .64); }
.tokens .k0 { background: rgba(37, 99, 235, .26); }
.tokens .k1 { background: rgba(22, 163, 74, .26); }
.tokens .k2 { background: rgba(202, 138, 4, .28); }
.tokens .k3 { background: rgba(190, 24, 93, .22); }
.tokens .legend { font-size: .8em; margin-right: 2px; padding: 1px 7px; border-radius: 4px; }
.cuts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); }
.cuts h4 { margin: 6px 0 0; color: var(--body-text-color); overflow-wrap: anywhere; }
"""


def scored_text(strings, scored, settings=None):
    """A Scored as HTML. settings: the sampling settings by name, whose effect is shown beside the
    probabilities; None: without it."""
    known = summary(scored)
    lines = []
    if known:
        lines.append(
            strings["text_summary"].format(
                tokens=len(scored.tokens),
                characters=scored.characters,
                perplexity=_number(known.perplexity),
                bits=_number(known.bits_per_char),
            )
        )
    if scored.first_bits is None and scored.tokens:
        lines.append(strings["first_unknown"])
    elif scored.first_bits:
        lines.append(strings["first_uniform"].format(bits=_number(scored.first_bits)))
    if scored.unused:
        lines.append(strings["unsupported_settings"].format(names=", ".join(scored.unused)))
    if not scored.tokens:
        lines.append(strings["blank_empty"])
    notes = "".join(note(line) for line in lines)
    spans = "".join(_span(strings, token, settings) for token in scored.tokens)
    return f'{notes}{_legend(strings)}<div class="tokens">{spans}</div>'


def _span(strings, token, settings):
    """A token, coloured, with what is shown on a tap."""
    level = "" if token.logprob is None else f" p{min(LEVELS - 1, max(0, int(bits(token))))}"
    text = escape(token.label).replace("\n", "↵\n")
    pop = _alternatives(strings, token, settings)
    return f'<span class="t{level}" tabindex="0">{text}<span class="pop">{pop}</span></span>'


def _alternatives(strings, token, settings):
    name = f"<b>{escape(_visible_blanks(token.label))}</b>  "
    if token.logprob is None:
        return name + escape(strings["no_context"])
    share, cost = _share(math.exp(token.logprob)), _number(bits(token))
    head = name + escape(strings["token_cost"].format(share=share, bits=cost))
    if not token.top:
        return head
    left, is_exact = [None] * len(token.top), True
    if settings:
        logprobs = [logprob for _, logprob in token.top]
        chosen = [settings[name] for name in ("temperature", "top_k", "top_p")]
        left, is_exact = after_sampling(logprobs, *chosen)
    rows = [
        _row(label, logprob, after, is_exact, is_own=label == token.label)
        for (label, logprob), after in list(zip(token.top, left, strict=True))[:SHOWN]
    ]
    columns = ["likeliest", "share"] + ["after_settings"] * bool(settings)
    header = "".join(f"<th>{escape(strings[column])}</th>" for column in columns)
    return f"{head}<table><tr>{header}</tr>{''.join(rows)}</table>"


def _row(label, logprob, after, is_exact, is_own):
    cells = [_visible_blanks(label), _share(math.exp(logprob))]
    if after is not None:
        about = "" if is_exact or not after else "≈ "
        cells.append(f"{about}{_share(after)}" if after else "–")
    kind = " ".join(["own"] * is_own + ["out"] * (after == 0))
    # HTML needs no end tags here, and a text of 2,000 tokens has 20,000 rows.
    row = f'<tr class="{kind}">' if kind else "<tr>"
    return row + "".join(f"<td>{escape(cell)}" for cell in cells)


def _visible_blanks(label):
    return label.translate(BLANKS)


def _legend(strings):
    """What the colours mean."""
    steps = "".join(
        f'<span class="legend p{level}">'
        f"{_share(2.0**-level) if level < LEVELS - 1 else '&lt; 1 %'}</span>"
        for level in range(LEVELS)
    )
    return f'<div class="tokens">{steps} <span class="quiet">{escape(strings["tap"])}</span></div>'


def _share(p):
    """A probability as text."""
    if p >= 0.9995:
        return "100 %"
    return f"{100 * p:.1f} %" if p >= 0.001 else "< 0.1 %"


def _number(value):
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e15 else "∞"


def cut_texts(strings, cuts, characters):
    """Cuts side by side. characters: of the text."""
    return f'<div class="cuts">{"".join(_cut(strings, cut, characters) for cut in cuts)}</div>'


def _cut(strings, cut, characters):
    if cut.problem:
        return f"<div><h4>{escape(cut.names)}</h4>{note(cut.problem)}</div>"
    n = len(cut.tokens)
    counts = strings["cut_counts"].format(tokens=n, ratio=f"{characters / max(1, n):.2f}")
    spans = "".join(
        f'<span class="t k{i % PIECES}" title="{number}">'
        f"{escape(label).replace(chr(10), '↵' + chr(10))}</span>"
        for i, (number, label) in enumerate(cut.tokens)
    )
    return f'<div><h4>{escape(cut.names)}</h4>{note(counts)}<div class="tokens">{spans}</div></div>'
