"""Reports: tables and lines for the screen, JSON and JSONL for programs."""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.files import written_whole

# Why an answer is empty; sample.py and the evaluations print it.
ENDED_AT_ONCE = (
    "the model ended at once. After few training steps a model knows little more than which tokens "
    "are frequent, and the end of a text is the most frequent one: train longer (see "
    "docs/en/troubleshooting.md)"
)


def table(header, rows):
    """Lines of aligned columns: the first column to the left, the others (numbers) to the right."""
    lines = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(header, rows, align="---:"):
    """A Markdown table; the texts are Markdown already. align: of all columns, `:---` is left."""
    lines = [header, [align] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_line(text):
    """Text on one line, with all characters of Markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#&|!~$])", r"\\\1", " ".join(text.split()))


def one_line(text, most=300):
    """Untrusted text as one printable line of at most `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[:most] + "…"


def duration(seconds):
    """Seconds as "45s", "12m 05s", "3h 20m" or "2d 04h"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


@contextlib.contextmanager
def progress(total, name):
    """Yield a function that counts one more item as done, for long loops over `total` items.

    At a terminal it draws a bar on stderr. In a pipe or a file it prints a line there after each
    tenth of the items, at most one a second, and one at the end.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=name, leave=False) as bar:
            yield bar.update
        return
    done, began, shown_at, next_shown = 0, time.monotonic(), float("-inf"), total / 10

    def advance():
        nonlocal done, shown_at, next_shown
        done += 1
        now = time.monotonic()
        if done < total and (done < next_shown or now < shown_at + 1):
            return
        shown_at, next_shown = now, done + total / 10
        seconds = now - began
        left = f", {duration(seconds / done * (total - done))} left" if done < total else ""
        line = f"{name}: {done:,} of {total:,}, {duration(seconds)}{left}"
        print(line, file=sys.stderr, flush=True)

    yield advance


def check_writable(path):
    """UserError if no file can be written at `path`. Call it before the work, not after."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        open(path, "a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another") from None


def write_json(path, figures):
    """Write `figures` as indented JSON."""
    write_text(path, json.dumps(figures, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path, rows):
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path, text):
    """Write a text in UTF-8. An interruption leaves the old file."""
    try:
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
