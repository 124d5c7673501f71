"""The HTML of runs: loss curves, scores, differing settings, and samples as a time line."""

from html import escape

import numpy as np

from minigpt.arena.html import cell, note, table
from minigpt.arena.window.curves import COLORS, Curve, curves_svg
from minigpt.arena.window.labels import visible_text
from minigpt.arena.window.runs import differences, thinned

X_AXES = {"step": "x_steps", "tokens": "x_tokens", "minutes": "x_minutes"}  # column → string
MAX_SAMPLE_CHARS = 600
MAX_VALUE_CHARS = 80  # of a setting

CSS = """
.timeline { border-left: 2px solid var(--border-color-primary); margin: 8px 0 8px 6px;
  padding-left: 14px; }
.timeline .step { font-size: .85em; color: var(--body-text-color-subdued); margin-top: 10px;
  font-variant-numeric: tabular-nums; }
.timeline .sample { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7;
  color: var(--body-text-color); }
"""


def runs_report(strings, views, x):
    """RunViews side by side. x: a key of X_AXES."""
    if not views:
        return note(strings["no_runs"])
    problems = "".join(note(line) for view in views for line in view.problems)
    missing = [view.name for view in views if view.log is None and not view.problems]
    if missing:
        problems += note(strings["no_log"].format(names=", ".join(missing)))
    parts = [problems, _curves(strings, views, x), _scores(strings, views)]
    parts.append(_differences(strings, views))
    parts += [_time_line(strings, view) for view in views if view.samples]
    return "".join(parts)


def _curves(strings, views, x):
    curves = [
        Curve(i, _line(view.log.train, x, "loss"), _line(view.log.val, x, "val_loss"))
        for i, view in enumerate(views)
        if view.log is not None
    ]
    keys = "".join(
        f'<span><i style="background:{COLORS[i % len(COLORS)]}"></i>{escape(view.name)}</span>'
        for i, view in enumerate(views)
    )
    svg = curves_svg(curves, strings[X_AXES[x]])
    about = f'<span class="quiet">{escape(strings["lines"])}</span>'
    return f'{svg}<div class="runs-legend">{keys}{about}</div>'


def _line(rows, column, loss):
    return np.stack([rows[column], rows[loss]], axis=1)  # (n, 2)


def _scores(strings, views):
    """A table of what is measured: the log's last step and best loss, and the files of scores."""
    rows = [[cell(strings["last_step"]), *(_log_cell(view, _last) for view in views)]]
    rows.append([cell(strings["best_loss"]), *(_log_cell(view, _best) for view in views)])
    for key in dict.fromkeys(key for view in views for key in view.scores):
        values = (view.scores.get(key) for view in views)
        shown = ("" if value is None else f"{value:.6g}" for value in values)
        rows.append([cell(": ".join(key), "long"), *(cell(value, "number") for value in shown)])
    return _heading(strings, "scores") + table(_header(views, "number"), rows)


def _header(views, kind):
    return [("", ""), *((view.name, kind) for view in views)]


def _log_cell(view, figure):
    return cell("" if view.log is None else figure(view.log), "number")


def _last(log):
    return f"{log.end('step'):,.0f} · {log.end('minutes'):,.1f} min"


def _best(log):
    if log.best is None:
        return ""
    return f"{log.val['val_loss'][log.best]:.4f} @ {log.val['step'][log.best]:,.0f}"


def _differences(strings, views):
    if len(views) < 2:
        return ""
    rows = [
        [cell(name), *(cell(_cut(value), "long") for value in values)]
        for name, values in differences(views)
    ]
    heading = _heading(strings, "differing_settings")
    if not rows:
        return heading + note(strings["no_differences"])
    return heading + table(_header(views, ""), rows)


def _cut(value):
    value = "–" if value is None else value
    return value if len(value) <= MAX_VALUE_CHARS else value[:MAX_VALUE_CHARS] + " …"


def _time_line(strings, view):
    """The samples of a run, step by step."""
    shown = thinned(view.samples)
    parts = [f"<h3>{escape(strings['samples_of'].format(name=view.name))}</h3>"]
    if len(shown) < len(view.samples):
        counts = dict(shown=len(shown), all=len(view.samples))
        parts.append(note(strings["samples_thinned"].format(**counts)))
    parts.append('<div class="timeline">')
    for step, text in shown:
        text = visible_text(text)
        text = text if len(text) <= MAX_SAMPLE_CHARS else text[:MAX_SAMPLE_CHARS] + " …"
        label = escape(strings["step"].format(step=f"{step:,}"))
        parts.append(f'<div class="step">{label}</div><div class="sample">{escape(text)}</div>')
    return "".join([*parts, "</div>"])


def _heading(strings, key):
    return f"<h3>{escape(strings[key])}</h3>"
