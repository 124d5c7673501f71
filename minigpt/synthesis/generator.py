"""The generator: asks a model about an entry until it has enough good pairs, for many entries at a
time.

    generator = PairGenerator(ask, template, rules, retries=2)
    tasks = EntryTasks("wiki/")
    for task, result in run_tasks(tasks.missing(log), generator, workers=4, close=pool.close):
        log.add(result.finished(task, deduplicator))

`ask(messages, attempt)` returns an answer, so nothing here knows HTTP; it is called with
refused=True for an entry that was refused in the last run. minigpt/synthesis/parsing.py
parses the replies, minigpt/synthesis/filters.py checks the pairs. Entries are read from the files
as they are needed: only a few are in memory.
"""

import functools
import itertools
import threading
import time
from collections import Counter, defaultdict, deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.data.pipeline import read_entries
from minigpt.data.sentences import ENDS
from minigpt.openai.answers import CUT_REASONS
from minigpt.openai.errors import QuestionRefused
from minigpt.synthesis.filters import Finding, feedback, filter_pairs
from minigpt.synthesis.journal import Finished, entry_hash
from minigpt.synthesis.parsing import breaks_off, parse_reply
from minigpt.synthesis.pool import PoolClosed
from minigpt.synthesis.verification.judge import NoVerdict, Usage

TICK = 0.2  # seconds between two looks at whether to stop
ROUND = "#"  # between a topic's title and the number of its round, in an id
CUT = "cut off"  # the broken rule of a reply that breaks off


# -- what is asked about ---------------------------------------------------------------------------


class Task(NamedTuple):
    """What pairs are generated about. entry: its hash; left_out: characters cut off the end of its
    text; previous: what the model wrote last about the same topic; refused: whether a server
    refused it in the last run."""

    entry: str
    id: str
    title: str
    text: str
    left_out: int = 0
    previous: str = ""
    refused: bool = False


class EntryTasks:
    """The Tasks of the entries under `paths`.

    limit: only the first so many; None: all
    text_max: characters of a text that are shown to the model: it is cut at a sentence's end
    clean: clean texts as data/prepare.py does by itself (minigpt/data/cleaning.py)
    total: number of entries, from a quick first pass, which finds every bad record before any work
    is done.  read: entries that missing() has read.  begun: Tasks that it has yielded.
    """

    def __init__(self, paths, limit=None, text_max=None, clean=True):
        self._paths, self._limit, self._text_max, self._clean = paths, limit, text_max, clean
        self.read = self.begun = 0
        self.total = sum(1 for _ in self._entries(clean=False))
        if not self.total:
            raise UserError(f"--input={paths}: no entry with text in it")

    def _entries(self, clean):
        return itertools.islice(read_entries(self._paths, "auto" if clean else "none"), self._limit)

    def missing(self, log, refused=()):
        """Yield the Tasks of entries that are not in the log (anything that has the hashes of those
        that are finished), each once. refused: hashes of those that were refused before."""
        running = set()
        for entry in self._entries(self._clean):
            self.read += 1
            key = entry_hash(entry.title, entry.text)
            running = {other for other in running if other not in log}
            if key in log or key in running:  # the latter: the same text twice in the input
                continue
            running.add(key)
            self.begun += 1
            text, left_out = shortened(entry.text, self._text_max)
            yield Task(key, entry.id, entry.title, text, left_out, refused=key in refused)


class TopicTasks:
    """The Tasks of topics, which need no source: all of them in turn, `rounds` times.

    memory: a RecentPairs, to which every written pair is added.  The rest is as in EntryTasks.
    """

    def __init__(self, paths, rounds, memory, limit=None):
        topics = list(read_entries(paths, clean="none"))
        # A topic that is listed twice counts once: its rounds must come in order.
        self._topics = _in_turn({(topic.title, topic.text): topic for topic in topics}.values())
        self._rounds, self._memory = rounds, memory
        self.read = self.begun = 0
        self.total = len(self._topics) * rounds
        self.total = self.total if limit is None else min(limit, self.total)
        if not self._topics:
            raise UserError(f"--input={paths}: no topic in it")

    def missing(self, log, refused=()):
        """Yield the Tasks that are not in the log; see EntryTasks. A topic's rounds come in order,
        because a prompt shows the pairs of the rounds before: while the log lacks the last round,
        None is yielded, which means: try again later."""
        for number in range(1, self._rounds + 1):
            for topic in self._topics:
                if self.read == self.total:
                    return
                self.read += 1
                key = self._key(topic, number)
                if key in log:
                    continue
                while number > 1 and self._key(topic, number - 1) not in log:
                    yield None
                self.begun += 1
                id_, previous = f"{topic.title}{ROUND}{number}", self._memory.text(topic.title)
                about = dict(previous=previous, refused=key in refused)
                yield Task(key, id_, topic.title, topic.text, **about)

    def _key(self, topic, number):
        return entry_hash(topic.title, topic.text, str(number))


def _in_turn(topics):
    """The topics, those of one title not one after the other but in turn with other titles: so an
    answer about a title is in the prompt when the title's turn comes again."""
    by_title = defaultdict(list)
    for topic in topics:
        by_title[topic.title].append(topic)
    turns = itertools.zip_longest(*by_title.values())
    return [topic for turn in turns for topic in turn if topic is not None]


class RecentPairs:
    """The last `n` pairs that were written about each topic."""

    def __init__(self, n):
        self._pairs = defaultdict(lambda: deque(maxlen=n))

    def add(self, id_, question, answer):
        """Add a pair of the round with this id."""
        self._pairs[id_.rpartition(ROUND)[0]].append(f"问：{question}\n答：{answer}")

    def text(self, title):
        """These pairs as a prompt's {previous}; "" where there are none."""
        return "\n".join(self._pairs[title])


def shortened(text, limit):
    """(text, characters left out): at most `limit` characters (None: all), up to the last end of a
    sentence in the second half, else of a clause, else of a word."""
    if limit is None or len(text) <= limit:
        return text, 0
    for pattern in ENDS:
        ends = [match.end() for match in pattern.finditer(text, limit // 2, limit)]
        if ends:
            return text[: ends[-1]], len(text) - ends[-1]
    return text[:limit], len(text) - limit


# -- one task --------------------------------------------------------------------------------------


@dataclass
class Result:
    """The result of a Task. pairs: those that passed; first, last: how often the first and the last
    reply broke each rule; reasons: what was wrong with the last reply, or why the server refused;
    uncounted: answers of which the server reports no tokens; judging: what the judge cost.
    """

    outcome: str
    pairs: list = field(default_factory=list)
    first: Counter = field(default_factory=Counter)
    last: Counter = field(default_factory=Counter)
    raw: str = ""
    reasons: list = field(default_factory=list)
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    judging: Usage = field(default_factory=Usage)
    seconds: float = 0.0

    def finished(self, task, deduplicator):
        """The Finished for PairsLog.add(), with the pairs that are new to the Deduplicator."""
        pairs, doubled = self.pairs, Counter()
        if self.outcome == "done":
            found = [deduplicator.add(question, answer) for question, answer in pairs]
            pairs = [pair for pair, double in zip(pairs, found, strict=True) if not double]
            doubled.update(filter(None, found))
        about = dict(
            attempts=self.attempts,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=round(self.seconds, 2),
            first=dict(self.first),
            last=dict(self.last),
            doubles=dict(doubled),
            **(dict(left_out=task.left_out) if task.left_out else {}),
            **(dict(uncounted=self.uncounted) if self.uncounted else {}),
            **(dict(judging=self.judging._asdict()) if self.judging.answers else {}),
        )
        return Finished(task.entry, task.id, self.outcome, pairs, about, self.raw, self.reasons)


@dataclass(frozen=True)
class PairGenerator:
    """Task → Result. retries: how often the model is asked again when too few pairs passed, each
    time with its last reply and what was wrong with it. judge: a Judge of the pairs that pass the
    rules, or None. Any thread may call it."""

    ask: object
    template: object
    rules: object
    retries: int = 2
    judge: object = None

    def messages(self, task):
        """The first prompt."""
        rules = self.rules
        return self.template.messages(
            text=task.text,
            title=task.title,
            n_min=rules.n_min,
            n_max=rules.n_max,
            question_max=rules.question_max,
            answer_min=rules.answer_min,
            answer_max=rules.answer_max,
            previous=task.previous,
        )

    def __call__(self, task):
        messages, result = self.messages(task), Result("rejected")
        ask = functools.partial(self.ask, refused=True) if task.refused else self.ask
        began = time.monotonic()
        while True:
            try:
                answer = ask(messages, result.attempts)
                findings = self._take(answer, task, result)
            except QuestionRefused as error:
                result.reasons.append(str(error))
                # What is refused for its own words is refused again; all else may be the server's.
                is_own = error.reason is None
                result.outcome = "rejected" if is_own and result.attempts else "refused"
                break
            if len(result.pairs) >= self.rules.n_min:
                result.outcome = "done"
                break
            result.raw, result.reasons = answer.text, [finding.reason for finding in findings]
            if result.attempts > self.retries:
                result.outcome = "refused" if _is_ended_by_server(answer) else "rejected"
                break
            # Chat templates want the two in turn, and something in each.
            messages = [
                *messages,
                {"role": "assistant", "content": answer.text.strip() or "[]"},
                {"role": "user", "content": feedback(findings)},
            ]
        result.seconds = time.monotonic() - began
        return result

    def _take(self, answer, task, result):
        """Add to the Result what is good in an Answer; returns Findings, what is not."""
        result.attempts += 1
        result.prompt_tokens += answer.prompt_tokens or 0
        result.completion_tokens += answer.completion_tokens or 0
        result.uncounted += None in (answer.prompt_tokens, answer.completion_tokens)
        source = None if self.template.source == "topic" else f"{task.title}\n{task.text}"
        reply = parse_reply(answer.text, answer.cut)
        kept, findings = filter_pairs(reply, source, self.rules, result.pairs)
        if answer.cut or breaks_off(answer.text):
            reason = answer.finish_reason or "null"
            findings.insert(0, Finding(CUT, "", f"回答没有写完（finish_reason：{reason}）。"))
        if kept and self.judge:
            kept, more = self._judged(kept, task, result)
            findings += more
        result.pairs += kept
        result.last = Counter(finding.rule for finding in findings)
        if result.attempts == 1:
            result.first = result.last
        return findings

    def _judged(self, pairs, task, result):
        """(the pairs that follow from the text, Findings of the others)."""
        try:
            judgement = self.judge(task.title, task.text, pairs)
        except NoVerdict as error:
            result.judging = result.judging.plus(error.usage)
            raise
        result.judging = result.judging.plus(judgement.usage)
        return judgement.kept, judgement.findings


def _is_ended_by_server(answer):
    """Whether neither the model nor the token limit ended an answer, but the server: a failure, or
    its moderation. So it is where there is no text at all. Then the entry may be answered another
    time."""
    if answer.cut:
        return answer.finish_reason.lower() not in CUT_REASONS
    if not answer.text.strip():
        return True
    return breaks_off(answer.text) and answer.finish_reason is None


# -- many at a time --------------------------------------------------------------------------------


def run_tasks(tasks, generator, workers, close, stop=None, tick=None):
    """Yield (task, result) as tasks end, `workers` of them at a time.

    stop: a threading.Event: no more tasks start, and those that run are finished
    close(): makes every question that waits for a server raise PoolClosed; called on `stop`, and
    when a task fails for a reason that concerns all, which is raised when the others have ended
    tick(): called often, between two results
    """
    stop, tasks, running, failure = stop or threading.Event(), iter(tasks), {}, None
    ended = closed = False
    executor = ThreadPoolExecutor(workers, "generator")
    try:
        while running or not ended:
            if (stop.is_set() or failure) and not closed:
                ended = closed = True
                close()
            task = None
            # Twice as many tasks as workers are submitted, so that no worker waits.
            if not ended and len(running) < 2 * workers:
                task = next(tasks, _END)
                if task is _END:
                    ended, task = True, None
            if task:
                running[executor.submit(generator, task)] = task
            done, _ = wait(running, 0 if task else TICK, FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                error = future.exception()
                if error is None:
                    yield task, future.result()
                elif not isinstance(error, PoolClosed):
                    failure = failure or error
            if tick:
                tick()
        if failure:
            raise failure
    finally:
        close()
        executor.shutdown(wait=False, cancel_futures=True)


_END = object()
