"""Prompts with what a reward needs → blocks for train.py --stage=grpo.

    python data/prepare_prompts.py --input=prompts.jsonl --dataset=data/processed_prompts
    python data/prepare_prompts.py --input=pairs.jsonl --template=chat
    python data/prepare_prompts.py --make=sums --input=out/sums.jsonl       # writes this file alone

Reads the same files as data/prepare.py. A record has these fields, in any case, and optionally
`id`:

{formats}

Question–answer pairs and conversations are read, too: the answer, or the last turn of the
assistant, becomes the reference (`answer`). A reward (docs/en/rewards.md) gets the prompt, what the
model answers, and the record with all its other fields.

--template is that of the model that will be trained, as in data/prepare_sft.py; plain: the model
continues the prompt as a text. --make=sums writes prompts to FILE.jsonl, and no blocks: additions
of two numbers of two or three digits with their answers, which data/prepare_sft.py reads, too.

All with one `id` (without one: with one prompt) go to train, or all to val. A block is a prompt;
one that leaves no room for an answer is dropped and counted. train.jsonl and val.jsonl hold the
records.
"""

import pathlib
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.data.formats import Prompt, any_of, describe, field_names, formats_of

SCRIPT = "data/prepare_prompts.py"
FORMATS = formats_of(Prompt)
MOST_SUMS = 500_000  # of 990 · 990 pairs of numbers of two or three digits


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated; with make, the file to write
    encoding: str = "auto"  # of the files; auto: recognized for each of them
    make: Literal["", "sums"] = ""  # prompts that are made, not read
    count: int = 20_000  # how many are made
    seed: int = 0  # of what make draws
    template: str = "qa"  # of the model to be trained: plain, qa, chat, alpaca, vicuna, gemma or
    #                             FILE.jinja
    prompt_field: str = ""  # the name that this field has in your records, if it is another one
    answer_field: str = ""  # as prompt_field
    dataset: str = "data/processed_prompts"  # the folder to write
    val_fraction: float | None = None  # share of the prompts held out; none: 10 %, but no more than
    #                             makes some 3,000
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core


def read_settings():
    """The settings, checked."""
    doc = __doc__.replace("{formats}", describe(FORMATS.values()))
    settings = configure(Settings, shared="tokenizer block_size", doc=doc, quiet=True)
    problems = settings.below(count=2, seed=0)
    if settings.count > MOST_SUMS:
        problems.append(f"--count={settings.count}: expected at most {MOST_SUMS}")
    if problems:
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import check_writable, write_jsonl
from minigpt.common.scripts import typed
from minigpt.data.block_format import PROMPTS
from minigpt.data.encoders import PromptEncoder
from minigpt.data.pipeline import PrepareOptions, command_line, prepare, table
from minigpt.rewards.made import make_sums
from minigpt.tokenizer.chat_template import find_template


def main():
    """Settings → dataset folder, and a table of what it holds."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    if settings.make:
        write_made(settings)
        return
    template = settings.template
    options = PrepareOptions(
        input=settings.input,
        dataset=settings.dataset,
        format=any_of(FORMATS, field_names(settings)),
        encoder=PromptEncoder("plain" if template == "plain" else find_template(template)),
        tokenizer=settings.tokenizer,
        block_size=settings.block_size,
        layout="pad",  # a prompt is a block
        encoding=settings.encoding,
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        workers=settings.workers,
        command=command_line(SCRIPT),
        facts=PROMPTS,
    )
    print(table(prepare(options)))


def write_made(settings):
    """Write the made prompts. UserError where --input names no new file for them."""
    path = pathlib.Path(settings.input)
    if path.suffix != ".jsonl":
        raise UserError(f"--input={settings.input}: expected FILE.jsonl, to write the prompts to")
    if path.exists():
        raise UserError(
            f"{path}: is there already; leave --make out to prepare it as it is, or give another "
            f"--input to write the prompts to"
        )
    check_writable(path)
    records = make_sums(settings.count, settings.seed)
    write_jsonl(path, records)
    print(f"{path}: {len(records):,} sums; prepare them: {typed(SCRIPT, f'--input={path}')}")


if __name__ == "__main__":
    run(main)
