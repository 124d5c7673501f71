"""Statistics of a file of pairs: how many, how long, how they begin, how many are duplicates.

    statistics = collect_statistics("sft/my_pairs.jsonl", Deduplicator())
    print(describe(statistics))
    print(compare([statistics, others]))        # several files side by side

Any file of question–answer pairs will do; of one that sft/sft_generate.py wrote, its progress is
counted too.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.common.report import table
from minigpt.data.formats import parse_qa
from minigpt.data.pipeline import read_entries, read_records
from minigpt.synthesis.dedup import comparable
from minigpt.synthesis.generator import ROUND
from minigpt.synthesis.journal import beside, entry_hash
from minigpt.synthesis.progress import ProgressCounts, rules_table

# What a question asks for, by its last such word; of words that begin alike the longest is first.
KINDS = (
    ("为什么 why", "为什么|为何|何故|何以|為什麼|為何"),
    ("怎么 how", "怎么|怎样|怎麼|怎樣|如何"),
    ("多少 how many", "多少|几|幾|多[大长高远深久重宽快長遠寬]"),
    ("何时 when", "什么时[候间期代]|什麼時[候間期代]|何时|何時|哪[一]?[年月日天]|何年"),
    ("哪里 where", "哪里|哪裡|哪儿|何处|何處|什么地方|什麼地方|何地"),
    ("谁 who", "谁|誰|何人|哪[一]?[位人]|什么人|什麼人"),
    ("哪 which", "哪"),
    ("什么 what", "什么|什麼|何|啥"),
    ("吗 yes or no", "吗|嗎|是否|能否|是不是|有没有|有沒有"),
)
OTHER = "其他 other"
_KINDS = re.compile("|".join(f"(?P<k{i}>{words})" for i, (_, words) in enumerate(KINDS)))
_OPENING_MARKS = "《“「『（〈【‘\"'("
QUANTILES = (0, 0.1, 0.5, 0.9, 0.99, 1)


@dataclass
class PairStatistics:
    """What is in a file of pairs.

    questions, answers: length in characters → pairs.  openings: first two characters → pairs.
    kinds: a label of KINDS or OTHER → pairs.  per_entry: pairs of an entry → entries; `unnamed`
    pairs say no entry.  models: who wrote them → pairs.  doubles: "exact", "near" → pairs.
    repeated: the sum of repetition() over the answers.
    progress: of the progress file, None where there is none.  input: entries of the source, and
    how many of them have pairs; None where no source was given.
    """

    path: Path
    pairs: int = 0
    questions: Counter = field(default_factory=Counter)
    answers: Counter = field(default_factory=Counter)
    openings: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    per_entry: Counter = field(default_factory=Counter)
    unnamed: int = 0
    repeated: float = 0.0
    models: Counter = field(default_factory=Counter)
    doubles: Counter = field(default_factory=Counter)
    progress: ProgressCounts | None = None
    input: tuple | None = None


def collect_statistics(path, deduplicator=None, source=None):
    """The PairStatistics of the pairs at `path`. deduplicator: a new Deduplicator, which takes most
    of the time; source: the files that the pairs were made of, to count the entries covered."""
    statistics, entries, ids = PairStatistics(Path(path)), Counter(), set()
    for _, pair, record in read_records([path], parse_qa):
        _count(statistics, pair, deduplicator)
        statistics.models[str(record.get("model", "unknown"))] += 1
        entry = record.get("entry", pair.id)
        if entry is None:
            statistics.unnamed += 1
            continue
        entries[str(entry)] += 1
        ids.add(pair.id)
    statistics.per_entry = Counter(entries.values())
    statistics.progress = _progress(path)
    if source:
        statistics.input = _coverage(source, entries.keys() | ids)
    return statistics


def _count(statistics, pair, deduplicator):
    statistics.pairs += 1
    statistics.questions[len(pair.question)] += 1
    statistics.answers[len(pair.answer)] += 1
    statistics.openings[opening(pair.question)] += 1
    statistics.kinds[question_kind(pair.question)] += 1
    statistics.repeated += repetition(pair.answer)
    if deduplicator and (found := deduplicator.add(pair.question, pair.answer)):
        statistics.doubles[found] += 1


def repetition(text, n=4):
    """The fraction of a text's character n-grams that occurred before in it; 0.0 if it has none."""
    text = comparable(text)
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def opening(question):
    """The first two characters, quotes and brackets passed over."""
    return question.lstrip(_OPENING_MARKS)[:2]


def question_kind(question):
    """The label of what a question asks for, by the last question word in it: earlier words may be
    part of a name or a clause."""
    found = [match.lastgroup for match in _KINDS.finditer(question)]
    return KINDS[int(found[-1][1:])][0] if found else OTHER


def _progress(path):
    """The ProgressCounts of the progress file beside `path`, of all generations; None if there is
    none."""
    file_path, _ = beside(path)
    if not file_path.exists():
        return None
    progress = ProgressCounts()
    with open(file_path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n") or line.isspace():  # a run may be writing the last one
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UserError(
                    f"{file_path}, line {number}: no JSON ({error}); take the line out"
                ) from None
            if "entry" in record:
                progress.add(record)
    return progress


def _coverage(source, known):
    """(entries of the source, those whose hash, id or title is in `known`)."""
    topics = {name.rpartition(ROUND)[0] for name in known if name and ROUND in name}
    total = covered = 0
    for entry in read_entries(source):
        total += 1
        hashed = entry_hash(entry.title, entry.text)
        covered += hashed in known or entry.id in known or entry.title in topics
    return total, covered


# -- as text ---------------------------------------------------------------------------------------


def quantile(lengths, share):
    """The length that `share` of the pairs do not exceed, from length → pairs."""
    wanted, total = share * sum(lengths.values()), 0
    for length in sorted(lengths):
        total += lengths[length]
        if total >= wanted and lengths[length]:
            return length
    return 0


def describe(statistics, most=15):
    """The report as text; `most`: openings that are listed."""
    n_entries = sum(statistics.per_entry.values())
    lines = [f"{statistics.path}: {statistics.pairs:,} pairs about {n_entries:,} entries"]
    if n_entries:
        lines[0] += f", {(statistics.pairs - statistics.unnamed) / n_entries:.2f} an entry"
    if statistics.unnamed:
        lines.append(f"{statistics.unnamed:,} pairs name no entry")
    lines += [f"written by {model}: {n:,}" for model, n in statistics.models.most_common()]
    lines.append(
        f"duplicates within the file: {statistics.doubles['exact']:,} exact, "
        f"{statistics.doubles['near']:,} near"
    )
    if statistics.input:
        total, covered = statistics.input
        lines.append(f"entries of the source: {total:,}, with pairs {covered:,}")
        lines[-1] += f" ({covered / total:.1%})" if total else ""
    header = ["characters", "least", "10 %", "median", "90 %", "99 %", "most"]
    rows = [
        [name, *(quantile(lengths, share) for share in QUANTILES)]
        for name, lengths in (("questions", statistics.questions), ("answers", statistics.answers))
    ]
    parts = ["\n".join(lines), table(header, rows)]
    for name, counts in (
        ("pairs of an entry", dict(sorted(statistics.per_entry.items()))),
        ("asked for", dict(statistics.kinds.most_common())),
        ("opening", dict(statistics.openings.most_common(most))),
    ):
        whole = sum(counts.values()) if name == "pairs of an entry" else statistics.pairs
        parts.append(
            table([name, "", ""], [[k, f"{n:,}", f"{n / whole:.1%}"] for k, n in counts.items()])
        )
    if statistics.progress:
        n = statistics.progress.outcomes
        outcomes = ", ".join(f"{n[name]:,} {name}" for name in ("done", "rejected", "refused"))
        parts.append(
            f"entries by the progress file: {outcomes}\n\n{rules_table(statistics.progress)}"
        )
    return "\n\n".join(parts)


def compare(files, shared=None):
    """What several files hold, a table with a column for each.

    files: PairStatistics. shared: of each file the pairs whose question is in an earlier one, or
    None.
    """

    def share(n, whole):
        return f"{n / whole:.1%}" if whole else "-"

    def lengths(counts):
        return " / ".join(str(quantile(counts, at)) for at in (0.1, 0.5, 0.9))

    def outcome(name):
        def shown(s):
            return share(s.progress.outcomes[name], s.progress.entries) if s.progress else "-"

        return shown

    def worst(s):
        broken = s.progress.first.most_common(1) if s.progress else []
        return f"{broken[0][0]} ({broken[0][1]:,})" if broken else "-"

    def most(counts, whole):
        (name, n), *_ = counts.most_common(1) or [("-", 0)]
        return f"{name} {share(n, whole)}"

    rows = [
        ("written by", lambda s: ", ".join(s.models) or "-"),
        ("pairs", lambda s: f"{s.pairs:,}"),
        ("entries", lambda s: f"{s.per_entry.total():,}"),
        ("pairs of an entry", lambda s: _mean(s.pairs - s.unnamed, s.per_entry.total())),
        ("characters of a question, 10 / 50 / 90 %", lambda s: lengths(s.questions)),
        ("characters of an answer, 10 / 50 / 90 %", lambda s: lengths(s.answers)),
        ("repeated 4-grams in an answer", lambda s: share(s.repeated, s.pairs)),
        ("most frequent opening", lambda s: most(s.openings, s.pairs)),
        ("most frequent question", lambda s: most(s.kinds, s.pairs)),
        ("duplicates, exact", lambda s: share(s.doubles["exact"], s.pairs)),
        ("duplicates, near", lambda s: share(s.doubles["near"], s.pairs)),
        ("entries done", outcome("done")),
        ("entries rejected", outcome("rejected")),
        ("entries refused by servers", outcome("refused")),
        ("most broken rule, first replies", worst),
    ]
    cells = [[name, *map(show, files)] for name, show in rows]
    if shared is not None:
        pairs = [s.pairs for s in files]
        cells.append(["in an earlier file", *map(share, shared, pairs)])
    return table(["", *(s.path.name for s in files)], cells)


def _mean(n, of):
    return f"{n / of:.2f}" if of else "-"


def questions_shared(paths):
    """For each file, how many of its questions are in an earlier one."""
    seen, found = set(), []
    for path in paths:
        asked = [comparable(pair.question) for _, pair, _ in read_records([path], parse_qa)]
        found.append(sum(question in seen for question in asked))
        seen.update(asked)
    return found
