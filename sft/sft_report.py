"""What is in a file of question–answer pairs: a table, and a picture beside the file. Of several
files, such as those of several generators: one table, side by side.

    python sft/sft_report.py sft/my_pairs.jsonl
    python sft/sft_report.py sft/my_pairs.jsonl --input=wiki/ --png=pairs.png
    python sft/sft_report.py sft/qwen.jsonl sft/glm.jsonl

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
    """(settings, files): the settings, and the files that the command line names."""
    words = sys.argv[1:]
    files = [word for word in words if not word.startswith("-") and not word.endswith(".py")]
    rest = [word for word in words if word not in files]
    settings = configure(Settings, doc=__doc__, argv=rest, quiet=True)
    if not files:
        raise UserError("no file given: python sft/sft_report.py FILE.jsonl [ANOTHER.jsonl …]")
    return settings, files


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.plotting.output import output_paths, write_figure
from minigpt.plotting.pairs import pairs_figure
from minigpt.synthesis.dedup import Deduplicator
from minigpt.synthesis.statistics import collect_statistics, compare, describe, questions_shared


def main():
    """Files → table and picture."""
    settings, files = read_settings()
    if len(files) > 1:
        return report_several(settings, files)
    path = pathlib.Path(files[0])
    pictures = output_paths(settings.png or str(path.with_suffix(".png")))
    statistics = statistics_of(path, settings)
    print(describe(statistics))
    rules = statistics.progress.first.most_common() if statistics.progress else []
    figure, notes = pairs_figure(
        path.name, statistics.questions, statistics.answers, statistics.per_entry, rules
    )
    write_figure(figure, pictures)
    for note in notes:
        print(note)
    print(f"\nwrote {', '.join(map(str, pictures))}")


def report_several(settings, files):
    """Print what several files hold, side by side."""
    if settings.png:
        raise UserError(f"png={settings.png}: a picture shows one file, and {len(files)} are given")
    found = [statistics_of(path, settings) for path in files]
    print(compare(found, questions_shared(files) if settings.doubles else None))
    if settings.input:
        for statistics in found:
            total, covered = statistics.input
            share = f"{covered:,} of {total:,} entries of the source have pairs"
            print(f"{statistics.path.name}: {share}")


def statistics_of(path, settings):
    """The PairStatistics of a file; UserError where it has no pairs."""
    deduplicator = Deduplicator() if settings.doubles else None
    statistics = collect_statistics(path, deduplicator, settings.input)
    if not statistics.pairs:
        raise UserError(f"{path}: no pairs in it yet")
    return statistics


if __name__ == "__main__":
    run(main)
