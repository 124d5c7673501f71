"""Experiments that test a claim: training runs, measurements, and the statistical verdict.

    wiki = Data("pretrain", Source("wiki"))                       # a description; nothing is made
    arms = {"at random": Arm(Run(wiki)), "in order": Arm(Run(wiki, if_trav=True))}
    lab = Lab("out/findings/cpu", scale, places("my_texts"))
    folder = arms["in order"].made_of.make(lab, seed=1337)        # prepares and trains, once
    judge(Check("bits/char", "at random", "in order"), values)    # holds, does not hold, or neither

Source, Data, Run and the other classes describe artifacts: files, datasets, runs. An artifact's
name contains its settings, so experiments that need the same run share it. make() creates the
artifact with the project's own scripts, unless it exists; interrupted training is resumed. A note
beside each artifact holds the command that made it: an artifact of another command is never used.
Several processes can share a Lab's folder: one makes an artifact while the others wait.
"""

import hashlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import ROOT, UserError
from minigpt.common.locks import locked
from minigpt.common.report import write_json, write_jsonl
from minigpt.data.pipeline import read_entries
from minigpt.evaluation.examples import draw, read_pairs
from minigpt.models import checkpoint
from minigpt.training.log import STOPPED
from tools.study import as_word, trial_name

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "too small to tell"

# -- the texts -------------------------------------------------------------------------------------

# kind → (path in the user's folder, bundled replacement, description)
KINDS = {
    "wiki": ("wiki", "data/sample", "texts for data/prepare.py"),
    "novels": ("novels", None, "more texts, of another kind than wiki/"),
    "qa": ("qa", "sft/sft_saves.jsonl", "pairs about wiki/, for data/prepare_sft.py"),
    "bbc": ("bbc/bbc_news.csv", None, "a table of labelled news, columns content and category"),
}
HELD_OUT = 0.1  # fraction of every source, chosen by hash: all datasets hold out the same entries


def places(folder=""):
    """kind → path of the texts: in the user's folder if they are there, else the bundled ones.
    Kinds without texts are left out. UserError for a folder that has none of them."""
    found = {}
    for kind, (part, _, _) in KINDS.items():
        if folder and (Path(folder) / part).exists():
            found[kind] = _shown(Path(folder) / part)
    if folder and not found:
        parts = ", ".join(part for part, _, _ in KINDS.values())
        raise UserError(f"--input={folder}: expected a folder that has some of {parts}")
    bundled = {kind: path for kind, (_, path, _) in KINDS.items() if path}
    return bundled | found


def _shown(path):
    """A path as passed to scripts: with /, and relative if it is in the project's folder."""
    path = Path(path).resolve()
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


# -- artifacts, in the order in which they are made ------------------------------------------------


class Source:
    """Texts or pairs of one or several kinds. `count` is a key of Scale.counts: use only that many,
    drawn at random, the same for every seed."""

    def __init__(self, *kinds, count=None):
        self.kinds, self.count = kinds, count
        self.name = "+".join(kinds) + (f"+{count}" if count else "")
        self.needs = set(kinds)

    def make(self, lab, seed=None):
        """The value of --input."""
        limits = [lab.scale.counts.get(name) for name in (self.count, "most")]
        limit = min((limit for limit in limits if limit), default=None)
        paths = ",".join(lab.places[kind] for kind in self.kinds)
        if limit is None:
            return paths
        path = lab.folder / "sources" / f"{self.name}.jsonl"
        with lab.locked(path):
            note, drawn = _read(_note(path)), dict(paths=paths, limit=limit)
            if note and note != drawn:
                raise lab.made_otherwise(path)
            if not path.exists():
                read = read_pairs if self.kinds == ("qa",) else _raw_entries
                rows = draw(list(read(paths)), limit, 0)
                write_jsonl(path, [row._asdict() for row in rows])
            write_json(_note(path), drawn)
        return path.as_posix()


def _raw_entries(paths):
    return read_entries(paths, False)


class Classes:
    """One of the files that data/prepare_classes.py makes from the labelled news."""

    needs = {"bbc"}

    def __init__(self, part):
        self.part, self.name = part, f"bbc_{part}"

    def make(self, lab, seed=None):
        folder = lab.folder / "sources" / "bbc"
        words = [f"--input={lab.places['bbc']}", f"--output={folder.as_posix()}"]
        lab.once(folder, "data/prepare_classes.py", *words)
        return (folder / f"{self.part}.jsonl").as_posix()


class Vocabulary:
    """A tokenizer that is trained on a source; the scale has its size."""

    def __init__(self, source):
        self.source, self.needs = source, source.needs
        self.name = f"of_{source.name}"

    def make(self, lab, seed=None):
        path = lab.folder / "sources" / f"vocabulary_{self.name}"
        words = [f"--input={self.source.make(lab)}", f"--output={path.as_posix()}"]
        words.append(f"--vocab_size={lab.scale.counts['vocabulary']}")
        lab.once(path, "data/train_tokenizer.py", *words)
        return f"{path.as_posix()}.tiktoken"


class Count:
    """A setting whose value is one of the scale's counts."""

    needs = set()

    def __init__(self, name):
        self.name = name

    def make(self, lab, seed=None):
        return lab.scale.counts[self.name]


class BlocksAStep:
    """A batch_size: the number of blocks of `size` tokens in the scale's tokens_a_step."""

    needs = set()

    def __init__(self, size):
        self.size, self.name = size, f"of_{size}"

    def make(self, lab, seed=None):
        return lab.scale.counts["tokens_a_step"] // self.size


# Scripts that were at the top level before; old notes name them without the folder.
MOVED = (
    "evaluations-classification.py",
    "evaluations-endings.py",
    "evaluations-repetition.py",
)
# The script that prepares a stage's dataset.
SCRIPTS = {
    "pretrain": "data/prepare.py",
    "tune": "data/prepare_sft.py",
    "dpo": "data/prepare_dpo.py",
    "bbc": "data/prepare.py",
    "bbc_tune": "data/prepare_sft.py",
}


class Data:
    """A dataset for a stage of training: a source, prepared with these settings."""

    def __init__(self, stage, source, **knobs):
        self.stage, self.source, self.knobs = stage, source, knobs
        self.needs = source.needs | _needs(knobs)
        self.name = _short(f"{stage}-{source.name}" + _named(knobs))

    def make(self, lab, seed=None):
        """The dataset folder."""
        folder, script = lab.folder / "data" / self.name, SCRIPTS[self.stage]
        words, written = [f"--input={self.source.make(lab)}"], None
        if self.stage == "dpo":  # first the pairs become a file of preferences
            written = lab.folder / "sources" / f"{self.name}.jsonl"
            words = [f"--from_qa={self.source.make(lab)}", f"--input={written.as_posix()}"]
        words += [*lab.scale.data_words(self.stage), *_flags(self.knobs, lab)]
        words += [f"--val_fraction={HELD_OUT}", f"--dataset={folder.as_posix()}"]
        lab.once(folder, script, *words, remove=written)
        return folder


class Run:
    """A training run of its dataset's stage, from scratch or from a base. It takes `length` times
    the steps that the scale has for this stage, or the setting epochs. There is one for each seed;
    seed s starts from seed s of its base."""

    def __init__(self, data, base=None, length=1, **knobs):
        self.data, self.base, self.length, self.knobs = data, base, length, knobs
        self.needs = data.needs | (base.needs if base else set())
        times = f"_x{length:.3g}" if length != 1 else ""
        self.name = _short(data.name + _named(knobs) + times + (f"_on_{base.name}" if base else ""))

    def make(self, lab, seed):
        """The run's folder."""
        folder = lab.folder / "runs" / self.name / f"seed={seed}"
        stage, shape = self.data.stage, ("tokenizer", "block_size")
        of_data = {name: value for name, value in self.data.knobs.items() if name in shape}
        words = ["train.py", *lab.scale.words[stage], *_flags(of_data | self.knobs, lab)]
        if self.base:
            words.append(f"--init_from={self.base.make(lab, seed).as_posix()}")
        if "epochs" not in self.knobs:
            words.append(f"--max_iters={max(2, round(self.length * lab.scale.steps[stage]))}")
        if self.length < 1:  # else warmup would take most of a short run
            words.append(f"--warmup_iters={round(self.length * lab.scale.warmup[stage])}")
        words += [f"--dataset={self.data.make(lab).as_posix()}", f"--seed={seed}"]
        resume = ["train.py", "--init_from=resume"] if checkpoint.exists(folder) else None
        lab.once(folder, *words, f"--out_dir={folder.as_posix()}", resume=resume)
        return folder


class Best:
    """The best/ checkpoint of a run, at its lowest val loss."""

    def __init__(self, run):
        self.run, self.data, self.needs = run, run.data, run.needs
        self.name = _short(f"best_of_{run.name}")

    def make(self, lab, seed):
        return self.run.make(lab, seed) / "best"


class Resized:
    """A copy of a run with another block_size, a Count: train.py refuses to fine-tune on blocks of
    another size than the base was trained on, but rotary embeddings allow it."""

    def __init__(self, run, block_size):
        self.run, self.data, self.needs = run, run.data, run.needs
        self.block_size = block_size
        self.name = _short(f"{block_size.name}_{run.name}")

    def make(self, lab, seed):
        folder = lab.folder / "runs" / self.name / f"seed={seed}"
        base = self.run.make(lab, seed)
        with lab.locked(folder):
            if not checkpoint.exists(folder):
                trained = checkpoint.load(base)
                trained.model.config.block_size = self.block_size.make(lab)
                checkpoint.resave(folder, trained)
        return folder


def _needs(knobs):
    return set().union(*(getattr(value, "needs", set()) for value in knobs.values()))


def _named(knobs):
    """Settings as a part of a folder's name."""
    plain = {name: getattr(value, "name", value) for name, value in knobs.items()}
    return f"+{trial_name(plain)}" if knobs else ""


def _short(name, most=90):
    """A folder name of at most `most` characters; a longer one is cut and ends in its hash."""
    if len(name) <= most:
        return name
    return f"{name[: most - 9]}~{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _flags(knobs, lab):
    """Settings as flags; artifacts among them are made first."""
    values = {k: v.make(lab) if hasattr(v, "make") else v for k, v in knobs.items()}
    return [f"--{name}={as_word(value)}" for name, value in values.items()]


# -- the folder of artifacts -----------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """The size of experiments: for each stage its recipe and flags, its steps and warmup steps; and
    counts of entries, questions and so on, by the names that Source and the measures use."""

    name: str
    words: dict
    steps: dict
    warmup: dict
    counts: dict

    def data_words(self, stage):
        """The arguments of a stage that concern its dataset."""
        of_data = ("--block_size", "--layout", "--tokenizer")
        return [w for w in self.words[stage] if w.endswith(".py") or w.startswith(of_data)]


class Lab:
    """The folder of all artifacts of one scale and the same texts, and how scripts make them.

    The working directory must be the project's folder. say(line) gets every command as a user
    would type it."""

    def __init__(self, folder, scale, found, say=print):
        self.folder, self.scale, self.places, self.say = Path(_shown(folder)), scale, found, say
        self._made = set()

    def locked(self, path):
        """A context in which no other process makes `path`. It waits while one does."""

        def report(holder):
            self.say(f"{path}: {holder} is making it; waiting")

        return locked(_note(path).with_suffix(".lock"), path, wait=math.inf, on_wait=report)

    def once(self, made, *words, resume=None, remove=None):
        """Run a script that writes the file or folder `made`, unless the note beside it says that
        this command has finished. resume: the arguments that continue an interrupted run.
        remove: another file that the script writes and does not overwrite.

        UserError if the script fails, or if the note is from another command.
        """
        with self.locked(made):
            path, words = _note(made), list(words)
            note = _read(path)
            if note and _current_path(note["words"]) != words:
                raise self.made_otherwise(made)
            if note and note["finished"]:
                return
            if remove:
                remove.unlink(missing_ok=True)
            write_json(path, dict(words=words, finished=False))
            words_now = [*resume, words[-1]] if resume and note else words
            self.call(path.with_suffix(".log"), *words_now)
            write_json(path, dict(words=words, finished=True))

    def made_otherwise(self, made):
        """The UserError for an artifact whose note has another command."""
        note = _note(made).name
        return UserError(
            f"{made}: was made by another command (see {note}): the experiment, its scale or "
            f"the texts have changed since; give another --out_dir, or delete {made}, {note} and "
            f"what was trained or measured from it"
        )

    def call(self, log, *words):
        """Run a script of the project; its output is appended to the file `log`."""
        self.say(" ".join(["$ python", *words]))
        with (
            open(log, "ab") as file,
            subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            ) as child,
        ):
            try:
                code = child.wait()
            except KeyboardInterrupt:  # the script got the Ctrl-C, too: let train.py save
                child.wait()
                raise
            except SystemExit:  # a signal to this process only
                child.terminate()
                child.wait()
                raise
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        if code:
            raise UserError(
                f"{words[0]} ended with exit code {code}: {last} (the whole output: {log})"
            )
        if last.startswith(STOPPED):  # the script itself got a signal
            raise KeyboardInterrupt

    def score(self, arm, seed, name):
        """The path, without a suffix, of the measurement `name` of an arm's run."""
        folder = self.folder / "scores" / arm.made_of.name / f"seed={seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def _note(made):
    return made.with_name(f"{made.name}.made.json")


def _current_path(words):
    """The arguments of a note, with the current path of the script."""
    return [f"tools/{words[0]}" if words[0] in MOVED else words[0], *words[1:]]


def _read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# -- claims ----------------------------------------------------------------------------------------


class Arm:
    """One side of a comparison: a run, and options for the measures."""

    def __init__(self, made_of, **asked):
        self.made_of, self.asked = made_of, asked


class Check(NamedTuple):
    """A part of a claim about one measure: `low` is below `high`, each the name of an arm or a
    number. With `within` they are equal, up to that fraction of `high`."""

    measure: str
    low: str | float
    high: str | float
    within: float | None = None

    def __str__(self):
        if self.within is None:
            return f"{self.measure}: {self.low} below {self.high}"
        return f"{self.measure}: {self.low} within {self.within:.0%} of {self.high}"


@dataclass
class Finding:
    """A claim and the experiment that tests it.

    measures: name → measure(lab, arm, seed), a number. checks: what the claim says about them; the
    claim holds if all checks hold. curve: the figure also shows the val loss of the arms.
    """

    number: int
    name: str
    claim: str  # one sentence, with its source
    run: str  # one sentence
    arms: dict[str, Arm]
    measures: dict[str, Callable]
    checks: list[Check]
    curve: bool = field(default=False)

    @property
    def needs(self):
        """The kinds of texts that are required."""
        asked = [value for arm in self.arms.values() for value in arm.asked.values()]
        things = [arm.made_of for arm in self.arms.values()] + asked
        return set().union(*(getattr(thing, "needs", set()) for thing in things))

    def measure(self, lab, seeds):
        """measure → arm → a value for each seed. A measure that returns None leaves the arm out.
        UserError if texts are missing."""
        for kind in sorted(self.needs - set(lab.places)):
            part, _, what = KINDS[kind]
            raise UserError(f"{self.name} needs {what}: give --input=FOLDER that has {part}")
        values = {name: {} for name in self.measures}
        for seed in seeds:  # an interruption leaves whole seeds
            for arm_name, arm in self.arms.items():
                for name, measure in self.measures.items():
                    value = measure(lab, arm, seed)
                    if value is not None:
                        values[name].setdefault(arm_name, []).append(float(value))
        return values


class Judgement(NamedTuple):
    """The result of a Check: the mean over seeds of high - low, half the width of its confidence
    interval, and the verdict."""

    difference: float
    half: float | None  # None: one seed gives no interval
    verdict: str


# The 95 % quantile of Student's t with 1, 2, … degrees of freedom.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
MOST_SEEDS = len(T95) + 1


def judge(check, values):
    """The Judgement of a Check over `values`, measure → arm → a value for each seed.

    Arms share seeds, so their differences are taken seed by seed, high - low. With d their mean and
    h = t · s / √n (t: T95), [d - h, d + h] is a 90 % confidence interval of the true difference.
    "Below" holds if d - h > 0 and fails if d + h < 0. "Within" (m: that fraction of the mean of
    high) holds if |d| + h < m and fails if |d| - h > m. Else the experiment is too small to tell.
    """
    of_arm = values[check.measure]
    low, high = (
        of_arm[side] if isinstance(side, str) else [side] * max(map(len, of_arm.values()))
        for side in (check.low, check.high)
    )
    differences = [b - a for a, b in zip(low, high, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return Judgement(mean, None, UNDECIDED)
    half = T95[n - 2] * statistics.stdev(differences) / math.sqrt(n)
    if check.within is None:
        holds, fails = mean - half > 0, mean + half < 0
    else:
        margin = check.within * abs(statistics.mean(high))
        holds, fails = abs(mean) + half < margin, abs(mean) - half > margin
    return Judgement(mean, half, HOLDS if holds else FAILS if fails else UNDECIDED)


def verdict(judgements):
    """The verdict of a whole claim: it holds if every part holds, and fails if one fails."""
    found = {judgement.verdict for judgement in judgements}
    if FAILS in found:
        return FAILS
    return HOLDS if found == {HOLDS} else UNDECIDED
