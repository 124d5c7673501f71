"""Endings: a multiple-choice task made of any text, in HellaSwag's shape, for lm-evaluation-harness
and for ourselves.

    items = make_items(texts, seed)              # context, four endings, which one is right
    write_task("out/endings", "endings", items)  # endings.jsonl and endings.yaml
    scores = score(trained, items)               # as lm_eval scores them

The context is an entry's first sentence; the right ending is the sentence after it, and the wrong
ones are the second sentences of other entries, of about the same length. The likeliest ending is
chosen: by the sum of its tokens' log-probabilities (acc), or by that sum a character (acc_norm).
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.report import check_writable, write_json, write_jsonl
from minigpt.evaluation.classification import label_logprobs
from minigpt.evaluation.examples import first_sentence

N_ENDINGS = 4
METRICS = ("acc", "acc_norm")
NEAREST = 24  # the wrong endings are drawn among so many of the nearest length


class Item(NamedTuple):
    """A context, its endings, and the number of the right one."""

    context: str
    endings: list
    label: int


def make_items(examples, seed, limit=None):
    """Items of the Examples of a run that continues text, in their order; `limit` of them.

    UserError where there are fewer than N_ENDINGS different endings.
    """
    found = {}  # ending → context: an ending that stands twice is not wrong for the other
    for example in examples:
        ending, _ = first_sentence(example.reference)
        found.setdefault(ending, example.prompt)
    if len(found) < N_ENDINGS:
        raise UserError(
            f"{len(found)} entries have a second sentence of their own; expected at least "
            f"{N_ENDINGS}: give more text"
        )
    rng = np.random.default_rng(seed)
    endings = sorted(found, key=len)
    place = {ending: i for i, ending in enumerate(endings)}
    items = []
    for right, context in found.items():
        low = max(0, min(place[right] - NEAREST // 2, len(endings) - NEAREST - 1))
        near = [ending for ending in endings[low : low + NEAREST + 1] if ending != right]
        wrong = [near[i] for i in rng.choice(len(near), N_ENDINGS - 1, replace=False)]
        label = int(rng.integers(N_ENDINGS))
        items.append(Item(context, [*wrong[:label], right, *wrong[label:]], label))
    if limit is not None and limit < len(items):
        items = [items[i] for i in sorted(rng.choice(len(items), limit, replace=False))]
    return items


def fitting(items, tokenizer, block_size):
    """The items of which every ending fits a block behind its context: what is longer, the harness
    would cut from the left, without a word."""
    return [
        item
        for item in items
        if max(map(len, (tokenizer.encode(item.context + e) for e in item.endings))) <= block_size
    ]


def write_task(folder, name, items):
    """Write NAME.jsonl and NAME.yaml, which lm_eval --include_path=FOLDER --tasks=NAME reads;
    returns the .yaml's path. The folder must stay where it is: the task names its data by it."""
    folder = Path(folder).resolve()
    data, task = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    check_writable(data)
    write_jsonl(data, [item._asdict() for item in items])
    metrics = [dict(metric=m, aggregation="mean", higher_is_better=True) for m in METRICS]
    about = dict(
        task=name,
        dataset_path="json",
        dataset_kwargs=dict(data_files=dict(test=data.as_posix())),
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="{{context}}",
        doc_to_choice="{{endings}}",
        doc_to_target="label",
        target_delimiter="",  # Chinese has no blank between sentences
        metric_list=metrics,
    )
    write_json(task, about)  # JSON is YAML
    return task


def score(trained, items, on_item=None):
    """What the harness's multiple_choice finds: {"items", "acc", "acc_norm", and of each its
    "…_stderr"}, shares of the items.

    trained: a Checkpoint. Context and ending are encoded together, and the first so many ids as the
    context has alone count as its own. on_item() is called after each item.
    """
    right = {name: [] for name in METRICS}
    for item in items:
        sums = ending_logprobs(trained, item)
        lengths = np.array([len(ending) for ending in item.endings])
        right["acc"].append(sums.argmax() == item.label)
        right["acc_norm"].append((sums / lengths).argmax() == item.label)
        if on_item:
            on_item()
    shares = {name: float(np.mean(found)) for name, found in right.items()}
    n = len(items)
    errors = {
        f"{name}_stderr": math.sqrt(p * (1 - p) / max(1, n - 1)) for name, p in shares.items()
    }
    return dict(items=n, **shares, **errors)


def ending_logprobs(trained, item):
    """(N_ENDINGS,) of an Item: the log-probability of each ending after the context."""
    tokenizer, sums = trained.tokenizer, []
    for ending in item.endings:
        ids = tokenizer.encode(item.context + ending)
        n_context = min(len(tokenizer.encode(item.context)), len(ids) - 1)
        prompts, answers = [ids[:n_context]], [ids[n_context:]]
        (found,) = label_logprobs(trained.model, prompts, answers, tokenizer.n_vocab, batch_size=1)
        sums.append(found[0].sum())
    return np.array(sums)
