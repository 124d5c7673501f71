"""Question–answer pairs from raw text: asks a large model about one entry at a time, keeps what
passes the filters, and never loses or repeats work.

    python sft/sft_generate.py --input=wiki/ --output=sft/my_pairs.jsonl \\
        --base_url=http://localhost:1234/v1 --model=qwen3-8b --workers=4
    python sft/sft_generate.py --input=wiki/ --dry_run                     # shows one prompt
    python sft/sft_generate.py --input=sft/topics.jsonl --prompt=topic --rounds=50 --output=…

The servers speak OpenAI's HTTP API: LM Studio, Ollama (http://localhost:11434/v1), vLLM, llama.cpp,
a cloud service. Several share the work: --base_url=ONE,TWO, their keys in environment variables
that --api_key_env names. One address with many keys: --api_key_file=keys.txt, a key a line.

--verify=true asks a judge, the same servers or those of --verify_base_url, whether each answer
follows from the text, and drops the pairs that do not.

The same command continues where the last run ended, however it ended, and asks again about what
servers refused; Ctrl-C finishes the questions in flight. Beside FILE.jsonl are FILE.progress.jsonl
and FILE.rejects.jsonl (see minigpt/synthesis/journal.py). Another prompt or model asks every entry
again and adds to the same file.
Exit code 1: fewer entries gave pairs than --min_success; 2: an error that the user can fix;
130: Ctrl-C.
"""

import json
import os
import pathlib
import re
import signal
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.common.json_text import parse_json

LIMITS = ("n_min", "n_max", "question_max", "answer_max")
TEXTUAL = ("temperature", "max_tokens", "text_max", "clean", "seed")  # what else changes the pairs
# The same; those at their default are left out, so that the files of earlier versions go on.
OPTIONAL = ("answer_min", "top_p", "extra_body", "verify")
OF_THE_SERVER = {"model", "messages", "stream"}  # fields that --extra_body may not have


class Settings:
    """The knobs of this script alone."""

    # -- input and prompt --
    input: str = ""  # files or folders with entries (or with topics), comma-separated
    output: str = "sft/my_pairs.jsonl"  # the file of pairs; a run continues it
    prompt: str = "facts"  # a name in sft/prompts (facts, wiki, topic) or a path
    n_min: int = 3  # pairs that an entry has to give
    n_max: int = 6  # and that are kept of it at most
    question_max: int = 15  # characters of a question
    answer_min: int = 1  # characters of an answer
    answer_max: int = 300  # and at most
    text_max: int = 3000  # characters of an entry in the prompt; a longer one is cut at a sentence
    rounds: int = 10  # of a prompt without source text: how often each topic is asked
    limit: int | None = None  # only the first so many entries of the input; none: all
    exclude: list[str] = []  # files of pairs that must not be repeated, such as an evaluation set
    clean: bool = True  # drop title lines, line breaks and the leftovers of wiki dumps

    # -- servers --
    base_url: list[str] = ["http://localhost:1234/v1"]  # servers; the least busy is asked
    api_key_env: list[str] = []  # NAMES of environment variables that hold keys: one for all
    #                              servers, or one for each
    api_key_file: str = ""  # a file of keys for one base_url, a key a line: each is a server
    model: str | None = None  # none: the one that the servers serve
    workers: int = 4  # entries asked about at once, over all servers
    temperature: float = 0.45  # higher: more varied, and less true to the text
    top_p: float | None = None  # none: the server's
    max_tokens: int = 2048  # of one answer, what a model thinks beforehand included
    seed: int | None = None  # for servers that take one; none: theirs
    extra_body: str = ""  # JSON, further fields of a request: {"enable_thinking": false}
    retries: int = 2  # how often an entry is asked again when too few of its pairs passed
    timeout: float = 180.0  # seconds for one answer
    patience: float = 3600.0  # seconds without any answer after which the run ends

    # -- the judge --
    verify: bool = False  # ask whether answers follow from the text; drop those that do not
    verify_base_url: list[str] = []  # other servers for that; none: those above
    verify_model: str | None = None  # none: the same, or the one that they serve
    verify_api_key_env: list[str] = []  # as api_key_env

    # -- the end of the run --
    min_success: float = 0.5  # exit code 1 where a smaller share of the entries gave enough pairs
    price_in: float | None = None  # of a million tokens read, to show the cost
    price_out: float | None = None  # of a million tokens written
    dry_run: bool = False  # print one whole prompt and its number of tokens, and ask no server


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, doc=__doc__, quiet=True)
    check(settings)
    return settings


def check(settings):
    """UserError with all that is wrong."""
    problems = settings.below(
        **dict(n_min=1, workers=1, rounds=1, limit=1, retries=0, temperature=0),
        **dict(question_max=1, answer_min=1, answer_max=1, text_max=1),
    )
    if settings.answer_max < settings.answer_min:
        problems.append(
            f"answer_max={settings.answer_max}: is below answer_min={settings.answer_min}"
        )
    if settings.top_p is not None and not 0 < settings.top_p <= 1:
        problems.append(f"top_p={settings.top_p:g}: expected more than 0, and 1 at most")
    if not settings.verify:
        names = ("verify_base_url", "verify_model", "verify_api_key_env")
        problems += [f"{n}: needs --verify=true" for n in names if getattr(settings, n)]
    try:
        extra_fields(settings.extra_body)
    except UserError as error:
        problems.append(str(error))
    if settings.n_max < settings.n_min:
        problems.append(f"n_max={settings.n_max}: is below n_min={settings.n_min}")
    if not 0 <= settings.min_success <= 1:
        problems.append(f"min_success={settings.min_success:g}: expected a share, 0 to 1")
    if problems:
        raise UserError("\n".join(problems))


def extra_fields(text):
    """The fields in --extra_body; UserError where it is no JSON object, or has one that is ours."""
    try:
        fields = parse_json(text or "{}")
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        example = json.dumps({"enable_thinking": False})
        raise UserError(f"extra_body={text}: expected a JSON object, such as {example}")
    ours = ", ".join(sorted(OF_THE_SERVER & fields.keys()))
    if ours:
        raise UserError(f"extra_body={text}: {ours} cannot be given here")
    return fields


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.data.formats import parse_qa
from minigpt.data.pipeline import read_records
from minigpt.synthesis.dedup import Deduplicator
from minigpt.synthesis.filters import Rules
from minigpt.synthesis.generator import (
    EntryTasks,
    PairGenerator,
    RecentPairs,
    TopicTasks,
    run_tasks,
)
from minigpt.synthesis.journal import PairsLog, beside
from minigpt.synthesis.pool import Pool
from minigpt.synthesis.progress import ProgressCounts, ProgressLine, summary
from minigpt.synthesis.servers import read_servers
from minigpt.synthesis.templates import FOLDER, load, schema
from minigpt.synthesis.verification.judge import SCHEMA as VERDICTS
from minigpt.synthesis.verification.judge import Judge
from minigpt.tokenizer.tokenizer import load_tokenizer


def main():
    """Entries → pairs."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    template = load(prompt_path(settings.prompt))
    rules = Rules(**{name: getattr(settings, name) for name in (*LIMITS, "answer_min")})
    if settings.verify and template.source == "topic":
        raise UserError(f"verify: the prompt {template.name} has no text that answers follow from")
    if settings.dry_run:
        return show_prompt(settings, template, rules)
    memory = RecentPairs(settings.n_max)
    tasks = find_tasks(settings, template, memory)
    stop, line = stop_on_signal(), ProgressLine()
    pool, judges = make_pools(settings, line.say)

    deduplicator = Deduplicator()
    now, in_all = (ProgressCounts(settings.price_in, settings.price_out) for _ in range(2))
    for _, pair, _ in read_records(settings.exclude, parse_qa) if settings.exclude else ():
        deduplicator.add(pair.question, pair.answer)

    def remember(pair):
        deduplicator.add(pair["question"], pair["answer"])
        if template.source == "topic":
            memory.add(pair["id"], pair["question"], pair["answer"])

    facts = generation_settings(settings, template, pool.model, judges and judges.model)
    log = PairsLog(settings.output, facts, remember, in_all.add)
    has_ended = False
    try:
        for text in log.notices():
            line.say(text)
        judge = judges and Judge(judge_function(settings, judges))
        ask = ask_function(settings, pool)
        generator = PairGenerator(ask, template, rules, settings.retries, judge)

        def tick():
            log.sync()
            left = tasks.total - tasks.read + tasks.begun - now.entries
            in_flight = sum(state.in_flight for state in pool.snapshot())
            line.show(lambda: now.line(tasks.total, left, in_flight))

        def close():
            pool.close()
            if judges:
                judges.close()

        missing, workers = tasks.missing(log, log.refused), settings.workers
        for task, result in run_tasks(missing, generator, workers, close, stop, tick):
            finished = result.finished(task, deduplicator)
            record = log.add(finished)
            for counts in (now, in_all):
                counts.add(record)
            for question, answer in finished.pairs if template.source == "topic" else ():
                memory.add(task.id, question, answer)
        has_ended = True
    finally:
        # The fault that ends a run may be that of the refusals, too.
        log.close(keep_refused=has_ended)
        line.clear()
        print(summary({"this run": now, "in all": in_all}))
        print(f"\n{log.path}: {log.pairs:,} pairs; beside it {beside(log.path)[0].name}")
        if now.outcomes["refused"]:
            print(f"refused: {now.outcomes['refused']:,} entries; the same command asks them again")
    if stop.is_set():
        raise KeyboardInterrupt
    if in_all.success < settings.min_success:
        share = f"{in_all.success:.1%} of the entries gave enough pairs"
        print(f"{share}, less than --min_success: {beside(log.path)[1]} says why", file=sys.stderr)
        sys.exit(1)


def find_tasks(settings, template, memory):
    """The tasks: of entries, or of topics."""
    if template.source == "topic":
        return TopicTasks(settings.input, settings.rounds, memory, settings.limit)
    return EntryTasks(settings.input, settings.limit, settings.text_max, settings.clean)


def make_pools(settings, warn):
    """(the Pool of the generator, that of the judge or None), both checked."""
    extra = extra_fields(settings.extra_body)

    def make(servers, model, extra):
        more = dict(workers=settings.workers, timeout=settings.timeout, patience=settings.patience)
        pool = Pool(servers, model, extra=extra, warn=warn, **more)
        pool.check()
        return pool

    servers = read_servers(settings.base_url, settings.api_key_env, settings.api_key_file)
    others = settings.verify_base_url
    others = read_servers(others, settings.verify_api_key_env) if others else servers
    pool = make(servers, settings.model, extra)
    if not settings.verify or (others is servers and settings.verify_model in (None, pool.model)):
        return pool, pool if settings.verify else None
    model = settings.verify_model or (pool.model if others is servers else None)
    return pool, make(others, model, extra if others is servers else None)


def ask_function(settings, pool):
    """The function by which a generator asks."""
    form = schema(settings.n_min, settings.n_max)

    def ask(messages, attempt, refused=False):
        return pool.ask(
            messages,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            schema=form,
            # With the same seed some servers give the same answer again.
            seed=None if settings.seed is None else settings.seed + attempt,
            refused_before=refused,
        )

    return ask


def judge_function(settings, pool):
    """The function by which a judge asks: cold, because there is one right verdict."""

    def ask(messages, attempt):
        # Some servers refuse 0. Asked again as cold, it would say the same.
        temperature = 0.01 if attempt == 0 else 0.45
        limit = settings.max_tokens
        return pool.ask(messages, temperature=temperature, max_tokens=limit, schema=VERDICTS)

    return ask


def generation_settings(settings, template, model, judge_model):
    """The settings that identify a generation: all that change the pairs."""
    named = dict(template=template.name, version=template.version, model=model)
    named |= {name: getattr(settings, name) for name in (*LIMITS, *TEXTUAL)}
    if judge_model not in (None, model):
        named["verify_model"] = judge_model
    more = {name: getattr(settings, name) for name in OPTIONAL}
    return named | {name: value for name, value in more.items() if value != getattr(Settings, name)}


def stop_on_signal():
    """An Event that Ctrl-C or SIGTERM sets; a second one ends the process at once."""
    event = threading.Event()

    def stop(number, frame):
        signal.signal(number, signal.SIG_DFL)
        event.set()
        # print() is not to be used where it may have been interrupted itself.
        os.write(2, b"\nstopping: what is being answered is finished first (again: at once)\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return event


def show_prompt(settings, template, rules):
    """Print what the first entry would be asked, and its length; nobody is asked."""
    task = next(find_tasks(settings, template, RecentPairs(1)).missing(log=()), None)
    if task is None:
        raise UserError(f"--input={settings.input}: no entry has text in it once it is cleaned")
    messages = PairGenerator(None, template, rules).messages(task)
    for message in messages:
        print(f"-- {message['role']} --\n{message['content']}\n")
    tokenizer = load_tokenizer("zh")
    count = sum(len(tokenizer.encode(message["content"])) for message in messages)
    print(f"{count:,} tokens of our zh tokenizer; the model's own may differ by a third")
    print(f"prompt {template.name}, version {template.version}; entry {task.id}: {task.title}")


def prompt_path(name):
    """The prompt file that a name or a path means."""
    return FOLDER / f"{name}.md" if re.fullmatch(r"[\w-]+", name) else pathlib.Path(name)


if __name__ == "__main__":
    run(main)
