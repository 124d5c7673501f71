"""Examples: what a run is judged by. A prompt with its reference, what the run wrote, and whether
the run has met the example before.

A run that answers questions (prompt format "qa") gets the question and is held against the answer;
one that continues text ("plain") gets an entry's first sentence and is held against the rest.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config.configurator import UserError
from data_utils import Blocks
from minigpt.cleaning import clean
from minigpt.corpus import entry_of, find_files, pair_of, read_records
from minigpt.cutting import ENDS
from minigpt.engine import Request
from minigpt.prompt import prompt_ids, stop_ids

HELD_OUT, SEEN, OTHER = "held out", "seen in training", "others"


class Example(NamedTuple):
    """A prompt and the reference to hold what follows against; `id` as the file gives it."""

    id: str | None
    prompt: str
    reference: str


# -- reading ---------------------------------------------------------------------------------------


def read_texts(paths):
    """The texts under `paths`, not cleaned: a .txt is one, a .jsonl or .json one a record."""
    texts = []
    for file in find_files(paths):
        prose = []
        for kind, entry, _ in read_records([file], entry_of):
            (prose if kind == "prose" else texts).append(entry.text)
        if prose:
            texts.append("".join(prose))
    return texts


def read_pairs(paths):
    """The question–answer Pairs under `paths`."""
    return [pair for _, pair, _ in read_records(paths, pair_of)]


def read_examples(paths, prompt_format):
    """(examples, skipped): the Examples under `paths` for a run of this prompt format, and the
    number of entries that have nothing after their first sentence."""
    if prompt_format == "qa":
        return [Example(*pair) for pair in read_pairs(paths)], 0
    entries = [entry for _, entry, _ in read_records(paths, entry_of)]
    examples = []
    for entry in entries:
        prompt, rest = first_sentence(clean(entry.text, entry.title))
        if rest:
            examples.append(Example(entry.id, prompt, rest))
    return examples, len(entries) - len(examples)


def first_sentence(text):
    """(first sentence with its closing quotes, all that follows), blanks at both ends dropped."""
    text = text.strip()
    match = ENDS[0].search(text)
    end = match.end() if match else len(text)
    return text[:end].strip(), text[end:].strip()


def draw(examples, limit, seed):
    """`limit` of the examples at random, in their order; all of them where limit is None."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), limit, replace=False)
    return [examples[i] for i in sorted(chosen)]


# -- writing ---------------------------------------------------------------------------------------


def write_answers(engine, tokenizer, prompt_format, examples, seed=0, on_end=None, **sampling):
    """What the engine's model writes for each example: [(text, finish_reason)].

    sampling: Request's settings. on_end() is called as each text ends. Example i draws from
    seed + i, so that neither its neighbours nor the batch change its text.
    """
    requests = [
        Request(
            prompt_ids(tokenizer, prompt_format, example.prompt),
            seed=seed + i,
            stop_ids=stop_ids(tokenizer),
            **sampling,
        )
        for i, example in enumerate(examples)
    ]
    tickets = engine.generate(requests, lambda ticket: on_end and on_end())
    # A text that ended at its greatest length may end within a character.
    return [(tokenizer.decode(t.ids).rstrip("\ufffd"), t.finish_reason) for t in tickets]


# -- seen or not -----------------------------------------------------------------------------------


def standings(examples, dataset, tokenizer, prompt_format):
    """For each example how it stands to the run's `dataset` folder: SEEN, HELD_OUT or OTHER.

    Seen is a pair that stands, token for token, in the training blocks. Held out is what is not
    seen and stands in val.jsonl: a pair by its id (where it has none, by its question), an entry
    by its id or its text. UserError where the folder is not there or belongs to another tokenizer.
    """
    path = Path(dataset) / "val.jsonl"
    blocks = Blocks(dataset, "train", tokenizer)
    try:
        kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if blocks.meta["prompt_format"] != prompt_format:
        raise UserError(f"{dataset}: its prompt format is not {prompt_format}, the run's")
    is_qa = prompt_format == "qa"
    seen = _trained_pairs(examples, blocks, tokenizer) if is_qa else set()
    ids = {str(record["id"]) for record in kept if record.get("id") is not None}
    texts = {record["question" if is_qa else "text"] for record in kept}

    def held_out(example):
        if is_qa:
            return example.prompt in texts if example.id is None else example.id in ids
        text = example.prompt + example.reference
        return example.id in ids or text in texts

    return [
        SEEN if i in seen else HELD_OUT if held_out(example) else OTHER
        for i, example in enumerate(examples)
    ]


def _trained_pairs(examples, blocks, tokenizer):
    """Numbers of the examples whose question, answer mark and answer stand in the blocks.

    Whatever the layout, an EOT ends each pair and only PAD stands between pairs.
    """
    dtype = blocks.tokens.dtype
    wanted = {}
    for i, example in enumerate(examples):
        ids = prompt_ids(tokenizer, "qa", example.prompt) + tokenizer.encode(example.reference)
        wanted.setdefault(np.asarray(ids, dtype).tobytes(), []).append(i)
    stream = np.asarray(blocks.tokens).reshape(-1)
    ends = np.flatnonzero((stream == tokenizer.eot) | (stream == tokenizer.pad))
    starts = np.concatenate(([0], ends[:-1] + 1))
    found = set()
    for start, end in zip(starts, ends, strict=True):
        found.update(wanted.get(stream[start:end].tobytes(), ()))
    return found
