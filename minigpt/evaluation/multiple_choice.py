"""Multiple choice: a task made of any text, in the form of HellaSwag, for lm-evaluation-harness and
for tools/evaluations-endings.py.

    items = make_items(texts, seed)              # context, four endings, which one is right
    write_task("out/endings", "endings", items)  # endings.jsonl and endings.yaml
    scores = score(trained, items)               # as lm_eval scores them

The context is an entry's first sentence; the right ending is the sentence after it, and the wrong
ones are second sentences of other entries with about the same length. The model chooses the most
likely ending: by the sum of its tokens' log-probabilities (acc), or by that sum divided by the
number of characters (acc_norm).
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
NEAREST = 24  # wrong endings are drawn from this many with the nearest lengths


class Item(NamedTuple):
    """A context, its endings, and the index of the right one."""

    context: str
    endings: list
    label: int


def make_items(examples, seed, limit=None):
    """Items of the Examples of a run that continues text, in their order; `limit` of them.

    UserError if there are fewer than N_ENDINGS different endings.
    """
    found = {}  # ending → context: a repeated ending would be right for both contexts
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
    rank = {ending: i for i, ending in enumerate(endings)}
    items = []
    for right, context in found.items():
        low = max(0, min(rank[right] - NEAREST // 2, len(endings) - NEAREST - 1))
        near = [ending for ending in endings[low : low + NEAREST + 1] if ending != right]
        wrong = [near[i] for i in rng.choice(len(near), N_ENDINGS - 1, replace=False)]
        label = int(rng.integers(N_ENDINGS))
        items.append(Item(context, [*wrong[:label], right, *wrong[label:]], label))
    if limit is not None and limit < len(items):
        items = [items[i] for i in sorted(rng.choice(len(items), limit, replace=False))]
    return items


def fitting(items, tokenizer, block_size):
    """The items whose context fits into a block with each ending: the harness would silently cut
    longer ones from the left."""
    return [
        item
        for item in items
        if max(map(len, (tokenizer.encode(item.context + e) for e in item.endings))) <= block_size
    ]


def write_task(folder, name, items):
    """Write NAME.jsonl and NAME.yaml, which lm_eval --include_path=FOLDER --tasks=NAME reads;
    returns the .yaml's path. The task has the absolute path of its data: do not move the folder."""
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
    """The same scores as the harness's multiple_choice: {"items", "acc", "acc_norm", and the
    "…_stderr" of both}, fractions of the items.

    trained: a Checkpoint. Context and ending are encoded together; the context's part is as many
    ids as the context alone has. on_item() is called after each item.
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
