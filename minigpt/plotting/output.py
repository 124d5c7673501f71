"""Picture files: `--output=a.png,b.svg` as paths, and writing a figure to them."""

import io
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.files import written_whole
from minigpt.plotting.style import styled

FORMATS = (".png", ".svg")


def output_paths(text):
    """The paths that `--output=a.png,b.svg` names. UserError lists every mistake."""
    paths = [Path(part.strip()) for part in text.split(",") if part.strip()]
    problems = [
        f"--output: {path}: expected a name that ends in {' or '.join(FORMATS)}"
        for path in paths
        if path.suffix.lower() not in FORMATS
    ]
    problems += [f"--output: {path}: is a folder" for path in paths if path.is_dir()]
    if not paths:
        problems.append("--output: names no file; write --output=loss.png")
    if problems:
        raise UserError("\n".join(problems))
    return paths


def write_figure(figure, paths, dpi=200):
    """Write `figure` to each of `paths`, as PNG or SVG by the suffix. Missing folders are made.

    An interruption leaves the old picture. UserError where a file cannot be written.
    """
    for path in map(Path, paths):
        picture = io.BytesIO()
        kind = path.suffix.lower()[1:]
        metadata = {"Date": None} if kind == "svg" else {}
        with styled():
            figure.savefig(picture, format=kind, dpi=dpi, metadata=metadata)
        try:
            with written_whole(path) as partial:
                partial.write_bytes(picture.getvalue())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
