"""Examples: what a run is judged by. A prompt with its reference, what the run wrote, and whether
the run has met the example before.

A run that answers questions (prompt format "qa") gets the question and is held against the answer;
one that talks ("chat") gets a conversation up to the assistant's last turn and is held against that
turn; one that continues text ("plain") gets an entry's first sentence and is held against the rest.
"""

import contextlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.data.cleaning import clean
from minigpt.data.formats import (
    Conversation,
    Pair,
    parse_chat,
    parse_dialogue,
    parse_qa,
    parse_text,
)
from minigpt.data.pipeline import read_records
from minigpt.data.prompts import chat_ids, prompt_ids, stop_ids
from minigpt.data.readers.files import find_files
from minigpt.data.sentences import ENDS
from minigpt.inference.engine import Request

HELD_OUT, SEEN, OTHER = "held out", "seen in training", "others"


class Example(NamedTuple):
    """A prompt and the reference to hold what follows against; `id` as the file gives it. Of a
    conversation `turns` is all that stands before the reference, ((role, content), …), and `prompt`
    what the user said last."""

    id: str | None
    prompt: str
    reference: str
    turns: tuple = ()


# -- reading ---------------------------------------------------------------------------------------


def read_texts(paths):
    """The texts under `paths`, not cleaned: a .txt is one, a .jsonl or .json one a record."""
    texts = []
    for file in find_files(paths):
        prose = []
        for kind, entry, _ in read_records([file], parse_text):
            (prose if kind == "prose" else texts).append(entry.text)
        if prose:
            texts.append("".join(prose))
    return texts


def read_pairs(paths):
    """The question–answer Pairs under `paths`."""
    return [pair for _, pair, _ in read_records(paths, parse_qa)]


def read_conversations(paths):
    """The Conversations under `paths`, whose records may be of any format that
    data/prepare_sft.py reads."""
    return [conversation for _, conversation, _ in read_records(paths, parse_dialogue)]


def example_of(conversation):
    """A Conversation as an Example: the assistant's last turn, and what stands before it."""
    turns = conversation.turns
    last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
    asked = [content for role, content in turns[:last] if role == "user"]
    return Example(conversation.id, asked[-1], turns[last][1], turns[:last])


def read_examples(paths, prompt_format):
    """(examples, skipped): the Examples under `paths` for a run of this prompt format, and the
    number of entries that have nothing after their first sentence. For "chat" the records may be
    of any format that data/prepare_sft.py reads."""
    if prompt_format == "qa":
        return [Example(*pair) for pair in read_pairs(paths)], 0
    if prompt_format == "chat":
        return [example_of(conversation) for conversation in read_conversations(paths)], 0
    entries = [entry for _, entry, _ in read_records(paths, parse_text)]
    examples = []
    for entry in entries:
        prompt, rest = first_sentence(clean(entry.text, entry.title))
        if rest:
            examples.append(Example(entry.id, prompt, rest))
    return examples, len(entries) - len(examples)


def first_held_out(dataset, prompt_format):
    """The first Example of a dataset's val.jsonl; None where that asks nothing of a run of this
    prompt format, or is not there."""
    parse = {"qa": parse_qa, "chat": parse_chat}.get(prompt_format)
    path = Path(dataset) / "val.jsonl"
    made = None
    if parse:  # BadRecord is a ValueError
        wrong = OSError, ValueError, AttributeError  # then it is no such file
        with contextlib.suppress(*wrong), open(path, encoding="utf-8") as file:
            made = parse(parse_json(file.readline()))
    if isinstance(made, Conversation):
        return example_of(made)
    return Example(*made) if isinstance(made, Pair) else None


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
            example_ids(tokenizer, prompt_format, example),
            seed=seed + i,
            stop_ids=stop_ids(tokenizer),
            **sampling,
        )
        for i, example in enumerate(examples)
    ]
    tickets = engine.generate(requests, lambda ticket: on_end and on_end())
    # A text that ended at its greatest length may end within a character.
    return [(tokenizer.decode(t.ids).rstrip("\ufffd"), t.finish_reason) for t in tickets]


def example_ids(tokenizer, prompt_format, example):
    """The ids to continue for an example: of a conversation every turn, however long it is."""
    if example.turns:
        return chat_ids(tokenizer, prompt_format, example.turns, math.inf)
    return prompt_ids(tokenizer, prompt_format, example.prompt)


# -- seen or not -----------------------------------------------------------------------------------


def standings(examples, dataset, tokenizer, prompt_format):
    """For each example how it stands to the run's `dataset` folder: SEEN, HELD_OUT or OTHER.

    Seen is a pair or a conversation that stands, token for token, in the training blocks. Held out
    is what is not seen and stands in val.jsonl: a pair by its id (where it has none, by its
    question), a conversation by its id (where it has none, by the turns before the reference), an
    entry by its text, as entries are held out. UserError where the folder is not there or belongs
    to another tokenizer.
    """
    path = Path(dataset) / "val.jsonl"
    blocks = Blocks(dataset, "train", tokenizer)
    try:
        with open(path, encoding="utf-8") as file:  # str.splitlines() would cut at U+2028 as well
            kept = [parse_json(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if blocks.meta["prompt_format"] != prompt_format:
        raise UserError(f"{dataset}: its prompt format is not {prompt_format}, the run's")
    plain = prompt_format == "plain"
    seen = set() if plain else _trained(examples, blocks, tokenizer, prompt_format)
    ids = {str(record["id"]) for record in kept if record.get("id") is not None}
    if plain:
        cleaned = (clean(record["text"], record.get("title") or "") for record in kept)
        asked = set(map(first_sentence, cleaned))
    elif prompt_format == "qa":
        asked = {record["question"] for record in kept}
    else:
        asked = {example_of(conversation).turns for conversation in read_conversations(path)}

    def held_out(example):
        if plain:
            return (example.prompt, example.reference) in asked
        if example.id is not None:
            return example.id in ids
        return (example.turns or example.prompt) in asked

    return [
        SEEN if i in seen else HELD_OUT if held_out(example) else OTHER
        for i, example in enumerate(examples)
    ]


def _trained(examples, blocks, tokenizer, prompt_format):
    """Numbers of the examples that stand in the blocks with their references.

    Whatever the layout, only PAD stands between pairs and between conversations. An EOT ends a
    pair; a conversation ends with a turn behind which no line break leads to another one.
    """
    dtype = blocks.tokens.dtype
    wanted = {}
    for i, example in enumerate(examples):
        ids = example_ids(tokenizer, prompt_format, example)
        ids = [*ids, *tokenizer.encode(example.reference)]
        wanted.setdefault(np.asarray(ids, dtype).tobytes(), []).append(i)
    stream = np.asarray(blocks.tokens).reshape(-1)
    ended = stream == (tokenizer.eot if prompt_format == "qa" else tokenizer.special["IM_END"])
    if prompt_format == "chat":
        follows = np.append(stream[1:], tokenizer.pad)
        ended &= (follows == tokenizer.special["IM_START"]) | (follows == tokenizer.pad)
    ends = np.flatnonzero(ended | (stream == tokenizer.pad))
    starts = np.concatenate(([0], ends[:-1] + 1))
    found = set()
    for start, end in zip(starts, ends, strict=True):
        found.update(wanted.get(stream[start:end].tobytes(), ()))
    return found
