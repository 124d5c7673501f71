"""What is in a file of question–answer pairs: a table, and a picture beside the file.

    python sft/sft_report.py sft/my_pairs.jsonl
    python sft/sft_report.py sft/my_pairs.jsonl --input=wiki/ --png=pairs.png

Any file of pairs that data/prepare_sft.py reads (--format=qa) will do. Of one that
sft/sft_generate.py is writing, or has written, the progress file beside it is counted as well:
entries and broken rules.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # what the pairs were made of, comma-separated: how many entries have pairs
    png: str = ""  # where the picture goes, .png or .svg or both; "": FILE.png beside FILE.jsonl
    doubles: bool = True  # look for duplicates within the file, which takes the longest


def read_settings():
    """(settings, path): the settings, and the one file that the command line names."""
    words = sys.argv[1:]
    files = [word for word in words if not word.startswith("-") and not word.endswith(".py")]
    rest = [word for word in words if word not in files]
    settings = configure(Settings, doc=__doc__, argv=rest, quiet=True)
    if len(files) != 1:
        raise UserError(
            f"{len(files)} files given, expected one: python sft/sft_report.py FILE.jsonl"
        )
    return settings, pathlib.Path(files[0])


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.plotting.output import output_paths, write_figure
from minigpt.plotting.pairs import pairs_figure
from minigpt.synthesis.dedup import Deduplicator
from minigpt.synthesis.statistics import collect_statistics, describe


def main():
    """File → table and picture."""
    settings, path = read_settings()
    pictures = output_paths(settings.png or str(path.with_suffix(".png")))
    statistics = collect_statistics(
        path, Deduplicator() if settings.doubles else None, settings.input
    )
    if not statistics.pairs:
        raise UserError(f"{path}: no pairs in it yet")
    print(describe(statistics))
    rules = statistics.progress.first.most_common() if statistics.progress else []
    figure, notes = pairs_figure(
        path.name, statistics.questions, statistics.answers, statistics.per_entry, rules
    )
    write_figure(figure, pictures)
    for note in notes:
        print(note)
    print(f"\nwrote {', '.join(map(str, pictures))}")


if __name__ == "__main__":
    run(main)
