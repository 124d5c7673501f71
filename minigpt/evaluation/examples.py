"""Evaluation examples: a prompt with its reference, the text that a run generates for it, and
whether the example is in the run's training data.

The prompt depends on the run's prompt format. "qa": a question; the reference is its answer.
"chat": a conversation up to the assistant's last turn, which is the reference. "plain": the first
sentence of an entry; the reference is the rest. A record with the fields `prompt` and `reference`
gives both as they are, for a run of any format.
"""

import contextlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.data.block_format import IS_START
from minigpt.data.cleaning import clean, clean_light
from minigpt.data.formats import (
    BadRecord,
    Conversation,
    Pair,
    parse_chat,
    parse_dialogue,
    parse_pair,
    parse_qa,
    parse_text,
)
from minigpt.data.pipeline import read_entries, read_records
from minigpt.data.prompts import (
    chat_ids,
    end_of,
    ids_of,
    prompt_ids,
    sample_parts,
    stop_ids,
)
from minigpt.data.readers.files import find_files
from minigpt.data.sentences import ENDS
from minigpt.inference.engine import Request
from minigpt.tokenizer.chat_template import from_json, kind_of, name_of

HELD_OUT, SEEN, OTHER = "held out", "seen in training", "others"


class Example(NamedTuple):
    """A prompt and its reference; `id` from the file. Of a conversation `turns` are all turns
    before the reference, ((role, content), …), and `prompt` is the last user turn."""

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
    """The question–answer Pairs under `paths`, whose records may be of any format that
    data/prepare_sft.py reads, with one question and its answer."""
    return [pair for _, pair, _ in read_records(paths, parse_pair)]


def read_conversations(paths):
    """The Conversations under `paths`, whose records may be of any format that
    data/prepare_sft.py reads."""
    return [conversation for _, conversation, _ in read_records(paths, parse_dialogue)]


def example_of(conversation):
    """A Conversation as an Example: the last assistant turn, and the turns before it."""
    turns = conversation.turns
    last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
    asked = [content for role, content in turns[:last] if role == "user"]
    return Example(conversation.id, asked[-1], turns[last][1], turns[:last])


def read_examples(paths, prompt_format):
    """(examples, skipped): the Examples under `paths` for a run of this prompt format, and the
    number of entries that have only one sentence. For "chat" the records may have any format that
    data/prepare_sft.py reads. If the first record has a `reference`, all give `prompt` and
    `reference`, whatever the format."""
    records = (record for _, _, record in read_records(paths, lambda record: record))
    if "reference" in next(records, {}):
        return [example for _, example, _ in read_records(paths, parse_example)], 0
    if prompt_format == "qa":
        return [Example(*pair) for pair in read_pairs(paths)], 0
    if kind_of(prompt_format) == "chat":
        return [example_of(conversation) for conversation in read_conversations(paths)], 0
    entries = [(entry.id, *first_sentence(entry.text)) for entry in read_entries(paths)]
    examples = [Example(*entry) for entry in entries if entry[2]]
    return examples, len(entries) - len(examples)


def parse_example(record):
    """Fields `prompt` and `reference`, optional `id` → Example. The prompt stays as it is."""
    for field in ("prompt", "reference"):
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise BadRecord(f"field `{field}`: expected a text that is not empty")
    given_id = record.get("id")
    return Example(
        None if given_id is None else str(given_id), record["prompt"], record["reference"].strip()
    )


def first_held_out(dataset, prompt_format):
    """The first Example of a dataset's val.jsonl; None if there is none for this prompt format."""
    parse = {"qa": parse_qa, "chat": parse_chat}.get(kind_of(prompt_format))
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
    """(first sentence with its closing quotes, the rest), both stripped."""
    text = text.strip()
    match = ENDS[0].search(text)
    end = match.end() if match else len(text)
    return text[:end].strip(), text[end:].strip()


def draw(examples, limit, seed):
    """A random subset of `limit` examples, in their order; all of them if limit is None."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), limit, replace=False)
    return [examples[i] for i in sorted(chosen)]


# -- generation ------------------------------------------------------------------------------------


def write_answers(engine, tokenizer, prompt_format, examples, seed=0, on_end=None, **sampling):
    """The engine's answer to each example: [(text, finish_reason)].

    sampling: Request's settings. on_end() is called as each text ends. Example i has the seed
    seed + i, so its text depends neither on the other examples nor on the batch.
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
    # A text that reached max_new_tokens may end within a character.
    return [(tokenizer.decode(t.ids).rstrip("\ufffd"), t.finish_reason) for t in tickets]


def example_ids(tokenizer, prompt_format, example):
    """The prompt ids of an example; of a conversation all turns, however long it is."""
    if example.turns:
        return chat_ids(tokenizer, prompt_format, example.turns, math.inf)
    return prompt_ids(tokenizer, prompt_format, example.prompt)


# -- seen in training or not -----------------------------------------------------------------------


def membership(examples, dataset, tokenizer, prompt_format):
    """For each example SEEN, HELD_OUT or OTHER, by the run's `dataset` folder.

    SEEN: a pair or conversation whose tokens are in the training blocks. HELD_OUT: not seen, and in
    val.jsonl. A pair is found there by its id (without one, by its question), a conversation by its
    id (without one, by the turns before the reference), an entry by its text. UserError if the
    folder does not exist or has another tokenizer.
    """
    path = Path(dataset) / "val.jsonl"
    blocks = Blocks(dataset, "train", tokenizer)
    try:
        with open(path, encoding="utf-8") as file:  # str.splitlines() would cut at U+2028 as well
            kept = [parse_json(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if from_json(blocks.meta) != prompt_format:
        raise UserError(f"{dataset}: its prompt format is not {name_of(prompt_format)}, the run's")
    plain = prompt_format == "plain"
    seen = set() if plain else _trained(examples, blocks, tokenizer, prompt_format)
    ids = {str(record["id"]) for record in kept if record.get("id") is not None}
    if plain:
        # The examples may be cleaned otherwise than the dataset was.
        texts = [record["text"] for record in kept]
        titles = [record.get("title") or "" for record in kept]
        every = (*texts, *map(clean_light, texts), *map(clean, texts, titles))
        asked = set(map(first_sentence, every))
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
    """Indices of the examples whose prompt and reference are in the blocks.

    Each pair and each conversation is a segment, which ends with the end of an answer. In the
    layout `packed`, which has no segments, it ends where the first id of another one, or PAD,
    follows.
    """
    dtype = blocks.tokens.dtype
    wanted = {}
    for i, example in enumerate(examples):
        turns = example.turns or (("user", example.prompt),)
        parts = sample_parts(prompt_format, (*turns, ("assistant", example.reference)))
        last = max(n for n, part in enumerate(parts) if part.learned)  # the end of the answer
        ids = ids_of(tokenizer, parts[:last])
        wanted.setdefault(np.asarray(ids, dtype).tobytes(), []).append(i)
    stream = np.asarray(blocks.tokens).reshape(-1)
    if blocks.meta["layout"] == "packed":
        ended = stream == end_of(tokenizer, prompt_format)
        beginnings = {int(np.frombuffer(key, dtype)[0]) for key in wanted}
        ended &= np.isin(np.append(stream[1:], tokenizer.pad), [tokenizer.pad, *beginnings])
        ends = np.flatnonzero(ended | (stream == tokenizer.pad))
        starts = np.concatenate(([0], ends[:-1] + 1))
    else:
        starts = np.flatnonzero(np.asarray(blocks.mask).reshape(-1) & IS_START)
        ends = np.append(starts[1:], len(stream)) - 1
    found = set()
    for start, end in zip(starts, ends, strict=True):
        found.update(wanted.get(stream[start:end].tobytes(), ()))
    return found
