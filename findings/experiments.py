"""What experiments are made of: texts, datasets and training runs, and the Lab that makes them.

    wiki = Data("pretrain", Source("wiki"))                       # a description; nothing is made
    in_order = Run(wiki, if_trav=True)
    lab = Lab("out/findings/cpu", scale, places("my_texts"))
    folder = in_order.make(lab, seed=1337)                        # prepares and trains, once

Source, Data, Run and the other classes describe artifacts: files, datasets, runs. An artifact's
name contains its settings, so experiments that need the same run share it. make() creates the
artifact with the project's own scripts, unless it exists; interrupted training is resumed. A note
beside each artifact holds the command that made it: an artifact of another command is never used.
Several processes can share a Lab's folder: one makes an artifact while the others wait.
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import ROOT, UserError
from minigpt.common.locks import locked
from minigpt.common.report import write_json, write_jsonl
from minigpt.data.pipeline import read_entries
from minigpt.evaluation.examples import draw, read_pairs
from minigpt.models import checkpoint
from minigpt.training.log import STOPPED
from tools.study import as_word, trial_name

# -- the texts -------------------------------------------------------------------------------------

# kind → (path in the user's folder, bundled replacement, description)
KINDS = {
    "wiki": ("wiki", "data/sample", "texts for data/prepare.py"),
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
    """Texts or pairs of one kind. Some of them only, drawn at random, the same for every seed:
    `count` is a key of Scale.counts, the number; `part` a fraction of what is there."""

    def __init__(self, kind, count=None, part=1):
        self.kind, self.count, self.part = kind, count, part
        self.name = kind + (f"+{count}" if count else "") + (f"+{part:.3g}" if part < 1 else "")
        self.needs = {kind}

    def make(self, lab, seed=None):
        """The value of --input."""
        limits = [lab.scale.counts.get(name) for name in (self.count, "most")]
        limit = min((limit for limit in limits if limit), default=None)
        path = lab.places[self.kind]
        if limit is None and self.part == 1:
            return path
        drawn = dict(paths=path, limit=limit) | ({"part": self.part} if self.part < 1 else {})
        return lab.write_rows(self.name, drawn, lambda: self._draw(path, limit))

    def _draw(self, path, limit):
        rows = read_pairs(path) if self.kind == "qa" else list(read_entries(path, False))
        rows = draw(rows, limit, 0)
        return draw(rows, round(self.part * len(rows)), 0)


class PairsAbout:
    """The pairs of qa/ about the texts of a Source: those that have the id of one of them."""

    def __init__(self, texts):
        self.texts, self.pairs = texts, Source("qa")
        self.name, self.needs = f"qa_about_{texts.name}", {"qa"} | texts.needs

    def make(self, lab, seed=None):
        texts, pairs = self.texts.make(lab), self.pairs.make(lab)
        return lab.write_rows(self.name, [texts, pairs], lambda: self._chosen(texts, pairs))

    def _chosen(self, texts, pairs):
        ids = {entry.id for entry in read_entries(texts, False)}
        found = [pair for pair in read_pairs(pairs) if pair.id in ids]
        if not found:
            raise UserError(f"{pairs}: no pair has the id of a text of {texts}")
        return found


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


class Sums:
    """Additions, which data/prepare_prompts.py makes."""

    name, needs = "sums", set()

    def make(self, lab, seed=None):
        path = lab.folder / "sources" / "sums.jsonl"
        words = ["--make=sums", f"--count={lab.scale.counts['sums']}", f"--input={path.as_posix()}"]
        lab.once(path, "data/prepare_prompts.py", *words)
        return path.as_posix()


class Vocabulary:
    """A tokenizer that is trained on a source; the scale has its size, a count."""

    def __init__(self, source, count="vocabulary", **knobs):
        self.source, self.needs, self.count, self.knobs = source, source.needs, count, knobs
        self.name = f"of_{source.name}"

    def make(self, lab, seed=None):
        path = lab.folder / "sources" / f"vocabulary_{self.name}"
        words = [f"--input={self.source.make(lab)}", f"--output={path.as_posix()}"]
        words += [f"--vocab_size={lab.scale.counts[self.count]}", *_flags(self.knobs, lab)]
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
    "sums": "data/prepare_sft.py",
    "reward": "data/prepare_prompts.py",
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


class Continued:
    """A copy of a Run, trained on: it ends at `length` times the steps of its stage. Use a constant
    learning rate: then it is the same run at a later step."""

    def __init__(self, run, length):
        self.start, self.length, self.data, self.needs = run, length, run.data, run.needs
        self.name = _short(f"{run.name}_to_x{length:.3g}")

    def make(self, lab, seed):
        folder = lab.folder / "runs" / self.name / f"seed={seed}"
        start = self.start.make(lab, seed)
        with lab.locked(folder):
            if not checkpoint.exists(folder):
                shutil.rmtree(folder, ignore_errors=True)
                copy = folder.with_name(f"{folder.name}.copy")
                shutil.copytree(start, copy, dirs_exist_ok=True)
                copy.rename(folder)
        steps = round(self.length * lab.scale.steps[self.data.stage])
        words = ["train.py", "--init_from=resume", f"--max_iters={steps}"]
        lab.once(folder, *words, f"--out_dir={folder.as_posix()}")
        return folder


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

    def write_rows(self, name, drawn, choose):
        """The path of a file of texts or pairs in sources/: the rows of choose(), unless the note
        beside it says that they were drawn in the same way. UserError if in another."""
        path = self.folder / "sources" / f"{name}.jsonl"
        with self.locked(path):
            note = _read(_note(path))
            if note and note != drawn:
                raise self.made_otherwise(path)
            if not path.exists():
                write_jsonl(path, [row._asdict() for row in choose()])
            write_json(_note(path), drawn)
        return path.as_posix()

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
