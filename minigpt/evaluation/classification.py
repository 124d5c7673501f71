"""Classification of texts by a language model: which of a few labels belongs to a text.

    question = task.question(row.text)             # the text's beginning, then "Category:"
    found = predict(trained, questions, task)      # reading → a label for each, or None
    scores(gold, found["generation"], task.labels) # accuracy, precision, recall, F1

There are four ways to get a label from a model (READINGS). "generation": the first label in the
text that it generates. The others generate nothing and take the label that is most likely to follow
the question: by the sum of its tokens' log-probabilities, by their mean, or by its first token.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.common.locks import lock_path, locked
from minigpt.common.report import ENDED_AT_ONCE, check_writable, write_json, write_jsonl
from minigpt.data.formats import BadRecord, parse_text
from minigpt.data.pipeline import read_records
from minigpt.data.prompts import prompt_ids, reply_text
from minigpt.evaluation.examples import Example, write_answers
from minigpt.evaluation.labelled import Labelled, excerpts
from minigpt.inference.engine import Engine
from minigpt.inference.kv_cache import KVCache

READINGS = ("generation", "likelihood, sum", "likelihood, mean", "first token")


# -- how a text becomes a question -----------------------------------------------------------------


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Task(NamedTuple):
    """A classification task (task.json).

    labels, ask   the classes; the words on the line after a text that ask for one
    length        how many characters of a text a question shows
    instruction   what is before all texts; {labels} in it is the list of the labels
    wording       how a text is shown with its label, with {text}, {label} and perhaps {number},
                  which counts the texts of a question from 1 on; "": the text, `ask`, the label
    letters       whether the answers are A, B, … in place of the labels
    """

    labels: tuple[str, ...]
    ask: str
    length: int
    instruction: str = ""
    wording: str = ""
    letters: bool = False

    def problems(self):
        """What is wrong with it, a line each."""
        found = []
        names = _PLACEHOLDER.findall(self.wording)
        if self.wording and (
            sorted(set(names) - {"number"}) != ["label", "text"]
            or names.count("label") + names.count("text") != 2
            or names.index("text") > names.index("label")
        ):
            found.append(f"wording={self.wording!r}: expected {{text}} and then {{label}}, once")
        if self.letters and len(self.labels) > len(LETTERS):
            found.append(f"letters: {len(self.labels)} labels; expected at most {len(LETTERS)}")
        return found

    def question(self, text):
        """A text's question: the instruction, the text's beginning, the words that ask for its
        label."""
        return self.examples([]) + self.shown(excerpts(text, self.length)[0], 1)

    def examples(self, shots):
        """The beginning of a question: the instruction, and (text, label) pairs with their labels,
        a blank line after each."""
        shown = self.instruction.replace("{labels}", self._list())
        parts = [shown] if shown else []
        for number, (text, label) in enumerate(shots, 1):
            parts.append(self.shown(text, number) + self.answer(label, "plain") + self._after())
        return "".join(f"{part}\n\n" for part in parts)

    def shown(self, text, number):
        """A text up to where its label follows."""
        return _filled(self._template().partition("{label}")[0].rstrip(), text, number)

    def answer(self, label, prompt_format):
        """The label, or its letter, as it follows a question. In plain text a blank is before it if
        the wording has one there; after an answer mark it has none."""
        answer = self.code(label)
        blank = self._template().partition("{label}")[0][-1:].isspace()
        return f" {answer}" if prompt_format == "plain" and blank else answer

    def code(self, label):
        """What stands for a label in an answer: itself, or its letter."""
        return LETTERS[self.labels.index(label)] if self.letters else label

    def _template(self):
        """The wording; without one a blank is after `ask` if its script has blanks."""
        blank = " " if self.ask.isascii() else ""
        return self.wording or f"{{text}}\n{self.ask}{blank}{{label}}"

    def _after(self):
        return self._template().partition("{label}")[2].rstrip()

    def _list(self):
        if self.letters:
            return ", ".join(f"{self.code(label)}: {label}" for label in self.labels)
        return ", ".join(self.labels)


def _filled(template, text, number):
    """A template with its text and number. What is filled in is not searched for placeholders."""
    values = dict(text=text, number=str(number))
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def write_task(folder, task, train, test, n_excerpts, made_by):
    """Write train.jsonl, pairs.jsonl, test.jsonl and task.json; returns the number of pairs.

    n_excerpts: how many questions a text gives at most. made_by: more entries of task.json.
    """
    folder = Path(folder)
    pairs = [
        dict(id=row.id, question=task.question(part), answer=task.code(row.label))
        for row in train
        for part in excerpts(row.text, task.length)[:n_excerpts]
    ]
    check_writable(folder / "task.json")
    with locked(lock_path(folder), folder, "--output"):
        write_jsonl(folder / "train.jsonl", [row._asdict() for row in train])
        write_jsonl(folder / "pairs.jsonl", pairs)
        write_jsonl(folder / "test.jsonl", [row._asdict() for row in test])
        write_json(folder / "task.json", task._asdict() | made_by)
    return len(pairs)


def read_task(folder):
    """The Task in `folder`. UserError if there is none."""
    path = Path(folder) / "task.json"
    try:
        facts = parse_json(path.read_text(encoding="utf-8"))
        task = Task(**{name: facts[name] for name in Task._fields if name in facts})
        task = task._replace(labels=tuple(task.labels))
        texts = (*task.labels, task.ask, task.instruction, task.wording)
        if not all(isinstance(text, str) for text in texts) or not all((*task.labels, task.ask)):
            raise TypeError("labels, ask, instruction and wording: expected texts")
        if type(task.length) is not int or task.length < 1 or not task.labels:
            raise ValueError(f"length={task.length}: expected 1 or more, and a label or more")
        if type(task.letters) is not bool or task.problems():
            raise ValueError("; ".join(task.problems()) or "letters: expected true or false")
        return task
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise UserError(
            f"{path}: cannot be read ({reason}); --input is the test.jsonl that "
            "data/prepare_classes.py writes, with task.json beside it"
        ) from None


def read_labelled(path, labels):
    """The Labelled texts of a .jsonl. UserError for a line without a text or with another label."""

    def labelled(record):
        if not str(record.get("text") or "").strip():
            raise BadRecord("field `text` is missing or empty")
        if record.get("label") not in labels:
            raise BadRecord(f"field `label`: {record.get('label')} is none of {', '.join(labels)}")
        return parse_text(record)

    found = read_records(path, labelled)
    return [Labelled(entry.id, entry.text, record["label"]) for _, entry, record in found]


# -- questions that fit a block --------------------------------------------------------------------

FEWEST = 16  # a question shows at least so many tokens of each text


def draw_shots(train, labels, count, seed):
    """`count` random Labelled texts of each class, shuffled. UserError if a class has fewer."""
    generator = np.random.default_rng(seed)
    drawn = []
    for label in labels:
        of_class = [row for row in train if row.label == label]
        if len(of_class) < count:
            raise UserError(
                f"shots={count}: class {label} has {len(of_class)} texts to learn from; "
                f"expected at most so many"
            )
        drawn += [of_class[i] for i in generator.permutation(len(of_class))[:count]]
    return [drawn[i] for i in generator.permutation(len(drawn))]


def fitted_question(task, text, shots, tokenizer, prompt_format, room):
    """(question, whether it was shortened): a text's question after the Labelled `shots` with their
    answers. If that is more than `room` tokens, each text is cut to the same number of tokens.

    UserError if fewer than FEWEST tokens of each text would remain.
    """
    texts = [excerpts(each, task.length)[0] for each in (*(shot.text for shot in shots), text)]
    rows = [tokenizer.encode(each) for each in texts]
    longest = max(map(len, rows))
    share = min(room, longest)

    def written(share):
        *before, last = (
            each if len(ids) <= share else _whole_words(tokenizer.decode(ids[:share]))
            for each, ids in zip(texts, rows, strict=True)
        )
        shown = zip(before, (shot.label for shot in shots), strict=True)
        return task.examples(shown) + task.shown(last, len(texts))

    question = written(share)
    while (excess := len(prompt_ids(tokenizer, prompt_format, question)) - room) > 0:
        share -= max(1, excess // (2 * len(texts)))  # half of it: short texts are not cut
        if share < FEWEST:
            raise UserError(
                f"shots={len(shots) // len(task.labels)}: {len(shots)} examples leave each text "
                f"fewer than {FEWEST} of the {room} tokens that a question may have; give fewer"
            )
        question = written(share)
    return question, share < longest


def _whole_words(text):
    """`text` without an incomplete character or word at its end."""
    text = text.rstrip("\ufffd")
    return text[: text.rfind(" ")] if " " in text else text


# -- predictions -----------------------------------------------------------------------------------


def predict(trained, questions, task, batch_size=16, on_end=None):
    """(predictions, notes). predictions: reading → the label of each question, None if the
    generated text has none. notes: a line about each reading that does not apply to these labels.

    trained: a Checkpoint. questions: with room for answer_room() more tokens in the block.
    """
    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    engine = Engine(trained.model, tokenizer.n_vocab, batch_size)
    written = write_answers(
        engine,
        tokenizer,
        prompt_format,
        [Example(None, question, "") for question in questions],
        on_end=on_end,
        temperature=0.0,
        max_new_tokens=answer_room(task, tokenizer, prompt_format),
    )
    labels = {task.code(label): label for label in task.labels}
    codes = [find_label(text, list(labels)) for text, _ in written]
    found = {"generation": [code and labels[code] for code in codes]}

    prompts = [prompt_ids(tokenizer, prompt_format, question) for question in questions]
    answers = label_ids(task, tokenizer, prompt_format)
    logprobs = label_logprobs(trained.model, prompts, answers, tokenizer.n_vocab, batch_size)
    by = {
        "likelihood, sum": lambda row: row.sum(),
        "likelihood, mean": lambda row: row.mean(),
        "first token": lambda row: row[0],
    }
    notes = []
    empty = sum(not text and reason == "stop" for text, reason in written)
    if empty:
        notes.append(f"{empty} of {len(written)} generated answers are empty: {ENDED_AT_ONCE}")
    clash = same_beginning(task.labels, answers)
    if clash:
        del by["first token"]
        notes.append(f"not read by the first token: {' and '.join(clash)} begin with the same one")
    for reading, value in by.items():
        best = [int(np.argmax([value(row) for row in rows])) for rows in logprobs]
        found[reading] = [task.labels[i] for i in best]
    return found, notes


def find_label(text, labels):
    """The first label in `text`, in upper or lower case, or None. If one label is a prefix of
    another the longer one counts; a label in Latin letters must be a whole word."""
    found = []
    for label in labels:
        pattern = rf"(?<![A-Za-z0-9]){re.escape(label)}(?![A-Za-z0-9])"
        if match := re.search(
            pattern if label.isascii() else re.escape(label), text, re.IGNORECASE
        ):
            found.append((match.start(), -len(label), label))
    return min(found)[2] if found else None


def label_ids(task, tokenizer, prompt_format):
    """The ids of each label as it follows a question."""
    answers = [task.answer(label, prompt_format) for label in task.labels]
    return [tokenizer.encode(reply_text(prompt_format, answer)) for answer in answers]


def answer_room(task, tokenizer, prompt_format):
    """How many tokens of a block are reserved for the answer: the longest label and a few more."""
    return max(map(len, label_ids(task, tokenizer, prompt_format))) + 4


def same_beginning(labels, answers):
    """Two or more labels with the same first id, or []."""
    groups = {}
    for label, ids in zip(labels, answers, strict=True):
        groups.setdefault(ids[0], []).append(label)
    return next((group for group in groups.values() if len(group) > 1), [])


@torch.inference_mode()
def label_logprobs(model, prompts, answers, n_vocab, batch_size=16):
    """The log-probabilities of each answer's tokens after each prompt (lists of ids):
    [[(n_tokens,) array for each answer] for each prompt].

    Each prompt is read once, into a cache that all answers use. A prompt and its longest answer
    must fit into a block.
    """
    model.eval()
    weight = model.wte.weight
    device, longest = weight.device, max(map(len, answers))
    cache = KVCache(model.config, batch_size, device, weight.dtype)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [[] for _ in prompts]
    for i in range(0, len(order), batch_size):
        numbers = order[i : i + batch_size]
        rows = [prompts[number] for number in numbers]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        width = len(rows[-1])
        layers = cache.rows(slice(0, len(rows)), width + longest)
        # Padding comes after the row's end; the answers' tokens overwrite it in the cache.
        x = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=device)
        places = torch.arange(width, device=device).expand_as(x)
        h = model(x, positions=places, cache=layers)  # (B, T, C)
        last = h[torch.arange(len(rows), device=device), lengths - 1].unsqueeze(1)  # (B, 1, C)
        for answer in answers:
            states, n = last, len(answer) - 1
            if n:
                x = torch.tensor([answer[:-1]] * len(rows), device=device)  # (B, n)
                places = lengths.unsqueeze(1) + torch.arange(n, device=device)
                states = torch.cat([last, model(x, positions=places, cache=layers)], dim=1)
            logprobs = model.logits(states)[..., :n_vocab].float().log_softmax(-1)
            ids = torch.tensor(answer, device=device)
            chosen = logprobs[:, torch.arange(n + 1, device=device), ids].cpu().numpy()
            for number, row in zip(numbers, chosen, strict=True):
                found[number].append(row)
    return found


# -- figures ---------------------------------------------------------------------------------------


def scores(gold, predicted, labels):
    """The metrics of predicted labels: a dict with

    count, accuracy, low, high   the last two a 95 % interval of the accuracy (Wilson 1927)
    macro_f1                     the mean of the classes' F1
    none                         texts that got no label
    classes                      label → {"precision", "recall", "f1", "count"}; 0.0 where the
                                 denominator is 0
    confusion                    rows are the true labels, columns the predicted ones, and one more
                                 column for none
    """
    columns = {label: i for i, label in enumerate([*labels, None])}
    confusion = np.zeros((len(labels), len(labels) + 1), int)
    for true, given in zip(gold, predicted, strict=True):
        confusion[columns[true], columns[given]] += 1
    hits, per_row, per_column = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    classes = {}
    for i, label in enumerate(labels):
        precision = hits[i] / per_column[i] if per_column[i] else 0.0
        recall = hits[i] / per_row[i] if per_row[i] else 0.0
        f1 = 2 * hits[i] / max(1, per_row[i] + per_column[i])
        figures = dict(precision=precision, recall=recall, f1=f1)
        classes[label] = {k: float(v) for k, v in figures.items()} | dict(count=int(per_row[i]))
    low, high = wilson(int(hits.sum()), len(gold))
    return dict(
        count=len(gold),
        accuracy=float(hits.sum() / len(gold)),
        low=low,
        high=high,
        macro_f1=sum(each["f1"] for each in classes.values()) / len(labels),
        none=int(per_column[-1]),
        classes=classes,
        confusion=confusion.tolist(),
    )


def wilson(hits, count, z=1.959964):
    """(low, high): the 95 % Wilson interval of a fraction, from `hits` of `count` samples."""
    share, z2 = hits / count, z * z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
