"""Ask several models the same questions: runs, servers, and files of answers.

    questions = read_asked("eight")                              # Examples, some with a reference
    models = [read_answers("gpt", "gpt.jsonl", questions)]       # ModelAnswers, …
    models += [ask_run("a", "out/a", questions, sampling), ask_server("b", client, …)]
    rows = measured(models, questions)                           # a dict for each answer
    figures = summaries(models, rows)                            # a dict for each model

Repetition is measured over words (jieba), not over tokens: so runs with different vocabularies, and
servers, which send only text, are measured alike.
"""

import contextlib
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import ROOT, UserError
from minigpt.common.presets import read_text
from minigpt.data.formats import BadRecord, parse_dialogue
from minigpt.data.pipeline import read_records
from minigpt.evaluation.examples import Example, example_of, write_answers
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.evaluation.repetition import recurring, repeated
from minigpt.evaluation.rouge import score, words
from minigpt.inference.engine import Engine
from minigpt.openai.errors import QuestionRefused, ServerUnusable, TemporaryError

SETS = ROOT / "tools" / "questions"  # the sets of questions that are shipped
PROMPT_FIELDS = ("question", "prompt", "instruction", "text")
REFERENCE_FIELDS = ("reference", "answer")
ANSWER_FIELDS = ("answer", "prediction", "response", "output", "completion", "text")
ROUNDS = 2  # a question that a server did not answer is asked once more, after the others
MOST_FAILURES = 3  # in a row; then a server is not asked again


class Answer(NamedTuple):
    """A text, and why it ended: "stop", "length", …; None if that is not known."""

    text: str
    finish_reason: str | None = None


@dataclass
class ModelAnswers:
    """What a model answered: an Answer to each question, None where there is none. source: where
    the answers are from; notes: lines about missing answers and their reasons."""

    name: str
    source: str
    answers: list[Answer | None]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How runs and servers generate, named as in Request. Question i has the seed seed + i."""

    temperature: float = 0.1
    top_k: int = 20
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 225
    seed: int = 1337

    def of_run(self):
        """The settings of write_answers()."""
        return {name: value for name, value in asdict(self).items() if name != "seed"}

    def of_server(self, number):
        """The fields of a chat completion for question `number`. What OpenAI's API lacks is sent
        only where it changes something."""
        fields = dict(temperature=self.temperature, top_p=self.top_p, seed=self.seed + number)
        fields["max_tokens"] = self.max_new_tokens
        if self.top_k:
            fields["top_k"] = self.top_k
        if self.repetition_penalty != 1:
            fields["repetition_penalty"] = self.repetition_penalty
        return fields


# -- questions -------------------------------------------------------------------------------------


def question_sets():
    """The names of the sets that are shipped."""
    return sorted(path.stem for path in SETS.glob("*.jsonl"))


def read_asked(name):
    """The questions of a shipped set or of a file, as Examples; reference "" if there is none.

    A .txt has one question a line. A file of records (.jsonl, .json, .csv, .tsv, .parquet) has the
    fields `question` (or `prompt`, `instruction`, `text`) and optionally `reference` (or `answer`).
    UserError if there is no such set or file, or no question in it.
    """
    if name in question_sets():
        path = SETS / f"{name}.jsonl"
    else:
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"questions={name}: no such file; expected one of {', '.join(question_sets())}, "
                "or a file"
            )
    if path.suffix.lower() == ".txt":
        found = [Example(None, line.strip(), "") for line in read_text(path).splitlines()]
    else:
        found = [example for _, example, _ in read_records([path], _asked)]
    questions = [example for example in found if example.prompt]
    if not questions:
        raise UserError(f"{path}: no question in it")
    return questions


def _asked(record):
    """A record as an Example."""
    prompt = _first(record, PROMPT_FIELDS)
    if prompt is None:
        raise BadRecord(f"expected a question in one of the fields {', '.join(PROMPT_FIELDS)}")
    reference = _first(record, REFERENCE_FIELDS) or ""
    given_id = record.get("id")
    return Example(None if given_id is None else str(given_id), prompt, reference)


def _first(record, fields):
    """The stripped text of the first of `fields` that has one, whatever the case of its name."""
    by_name = {str(name).lower(): value for name, value in record.items()}
    for name in fields:
        if isinstance(by_name.get(name), str) and by_name[name].strip():
            return by_name[name].strip()
    return None


# -- answers ---------------------------------------------------------------------------------------


def read_answers(name, path, questions):
    """The ModelAnswers in a file: a record has the question (PROMPT_FIELDS) and its answer
    (ANSWER_FIELDS), or is in any shape that data/prepare_sft.py reads. If no record has a question,
    there must be an answer for each question, in their order. UserError if no question is
    answered."""
    given = [pair for _, pair, _ in read_records([path], _answered)]
    if given and all(question is None for question, _ in given):
        if len(given) != len(questions):
            raise UserError(
                f"{path}: {len(given)} answers without their questions, and {len(questions)} "
                "questions are asked: expected a field `question` in each line, or as many answers"
            )
        return ModelAnswers(name, f"file {path}", [Answer(text) for _, text in given])
    by_question = defaultdict(list)
    for question, text in given:
        by_question[question].append(text)
    answers, used = [], defaultdict(int)
    for prompt in (example.prompt for example in questions):
        texts = by_question.get(prompt, ())
        # A question that is asked twice gets its second answer, if there is one.
        answers.append(Answer(texts[min(used[prompt], len(texts) - 1)]) if texts else None)
        used[prompt] += 1
    missing = answers.count(None)
    if missing == len(questions):
        raise UserError(
            f"{path}: none of the questions is answered in it; the first one is "
            f"{questions[0].prompt!r}; expected the fields `question`, written alike, and `answer`"
        )
    notes = [f"{missing} of {len(questions)} questions have no answer in it"] if missing else []
    others = sum(len(texts) for question, texts in by_question.items() if question not in used)
    if others:
        notes.append(f"{others} answers in it are to other questions")
    return ModelAnswers(name, f"file {path}", answers, notes)


def _answered(record):
    """(question or None, answer) of a record."""
    answer = next((n for n in ANSWER_FIELDS if isinstance(_lower(record).get(n), str)), None)
    if answer is not None:
        question = _first(record, [name for name in PROMPT_FIELDS if name != answer])
        return question, _lower(record)[answer].strip()
    with contextlib.suppress(BadRecord):
        example = example_of(parse_dialogue(record))
        return example.prompt, example.reference
    raise BadRecord(f"expected an answer in one of the fields {', '.join(ANSWER_FIELDS)}")


def _lower(record):
    return {str(name).lower(): value for name, value in record.items()}


def ask_run(
    name,
    folder,
    questions,
    sampling,
    batch_size=8,
    device="auto",
    dtype="auto",
    kernels="auto",
    on=None,
):
    """The ModelAnswers of the run in `folder`, prompted in its own format. on() is called after
    each answer. UserError if there is no such run."""
    trained = load_for_generation(folder, device, dtype, kernels)
    engine = Engine(trained.model, trained.tokenizer.n_vocab, batch_size)
    asked = [Example(None, question.prompt, "") for question in questions]
    texts = write_answers(
        engine,
        trained.tokenizer,
        trained.prompt_format,
        asked,
        sampling.seed,
        on_end=on,
        **sampling.of_run(),
    )
    source = f"run {folder}, step {trained.meta['step']}, {trained.prompt_format}"
    return ModelAnswers(name, source, [Answer(text.strip(), reason) for text, reason in texts])


def ask_server(name, client, model, questions, sampling, on=None):
    """The ModelAnswers of a server. client: a minigpt.openai.client.Client; model: what it is asked
    for, None: the only one that it serves. A server that fails is not an error: the notes say what
    happened. on() is called after each question."""
    found = ModelAnswers(name, f"server {client.name}", [None] * len(questions))
    try:
        model = model or _only_model(client)
    except (TemporaryError, ServerUnusable) as error:
        found.notes.append(f"not asked: {error}")
        return found
    found.source += f", model {model}"
    reasons = {}  # number of a question → why it has no answer
    for _ in range(ROUNDS):
        if not _ask_open(found, client, model, questions, sampling, reasons, on):
            break
    for reason in dict.fromkeys(reasons.values()):
        numbers = [str(number + 1) for number, why in sorted(reasons.items()) if why == reason]
        found.notes.append(f"no answer to {', '.join(numbers)}: {reason}")
    return found


def _ask_open(found, client, model, questions, sampling, reasons, on):
    """Ask each question that has no answer; `reasons` gets why one still has none. Returns whether
    it makes sense to ask the rest again."""
    failures = 0
    for number, question in enumerate(questions):
        if found.answers[number] is not None:
            continue
        body = dict(model=model, messages=[dict(role="user", content=question.prompt)])
        try:
            answer = client.ask(body | sampling.of_server(number))
        except (TemporaryError, QuestionRefused, ServerUnusable) as error:
            reasons[number] = str(error)
            failures += 1
            if isinstance(error, ServerUnusable) or failures == MOST_FAILURES:
                # It is not asked any more, so the rest has no answer for the same reason.
                rest = range(number, len(questions))
                reasons |= {i: str(error) for i in rest if found.answers[i] is None}
                return False
            continue
        reasons.pop(number, None)
        failures = 0
        found.answers[number] = Answer(answer.text.strip(), "length" if answer.cut else "stop")
        if on:
            on()
    return bool(reasons)


def _only_model(client):
    names = client.models()
    if not names:
        raise ServerUnusable("it does not list its models: name one in endpoints.csv")
    if len(names) > 1:
        raise ServerUnusable(f"it has the models {', '.join(names)}: name one in endpoints.csv")
    return names[0]


# -- figures ---------------------------------------------------------------------------------------


def measure(text, reference=""):
    """The figures of an answer: "characters", "repeated_4" and "recurring_4" over its words, and
    with a reference those of score()."""
    cut = words(text)
    figures = dict(characters=len(text), repeated_4=repeated(cut), recurring_4=recurring(cut))
    return figures | (score(text, reference) if reference else {})


def measured(models, questions):
    """A dict for each question and model, question by question: what was asked and answered, and
    the figures of measure(). "answer" is None, without figures, where there is none."""
    return [
        dict(
            number=number,
            question=question.prompt,
            reference=question.reference,
            model=model.name,
            answer=answer and answer.text,
            finish_reason=answer and answer.finish_reason,
            **(measure(answer.text, question.reference) if answer else {}),
        )
        for number, question in enumerate(questions, 1)
        for model in models
        for answer in [model.answers[number - 1]]
    ]


def summaries(models, rows):
    """For each model a dict: "model", "source", "notes", "asked", "answers" (how many it gave),
    "empty", "cut" (at max_new_tokens), and the means of the figures over its answers; None without
    an answer, and Rouge-L None without a reference."""
    found = []
    for model in models:
        own = [row for row in rows if row["model"] == model.name]
        given = [row for row in own if row["answer"] is not None]
        means = {
            name: _mean([row[name] for row in given if name in row])
            for name in (
                "characters",
                "repeated_4",
                "recurring_4",
                "rouge_l_words",
                "rouge_l_chars",
            )
        }
        counts = dict(
            asked=len(own),
            answers=len(given),
            empty=sum(not row["answer"] for row in given),
            cut=sum(row["finish_reason"] == "length" for row in given),
        )
        about = dict(model=model.name, source=model.source, notes=model.notes)
        found.append(about | counts | means)
    return found


def _mean(values):
    return math.fsum(values) / len(values) if values else None
