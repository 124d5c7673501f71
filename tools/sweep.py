"""Hyperparameter search: each combination of settings is a run of train.py, all in one study.

    python tools/sweep.py config/cpu_small.py --grid learning_rate=1e-3,3e-4 --grid batch_size=8,16
    python tools/sweep.py config/cpu_small.py --input=TEXTS --grid block_size=128,256 --epochs=3
    python tools/sweep.py config/cpu_small.py --range learning_rate=1e-4,1e-2 --trials=20
    python tools/sweep.py … --storage=postgresql://user:password@host/name     # on several machines

--grid tries every combination once. With --range Optuna's TPE sampler draws the values and learns
from earlier trials. Recipes and other flags are train.py's and apply to every trial.
out/sweeps/NAME then holds a run folder for each trial (its output in train.log), curves.png and the
study. After an interruption the same command continues: finished trials are not run again, and an
interrupted one is resumed. The same command on another machine, with the same --storage, helps.

Trials are compared by bits per character over the same held-out text: a loss per token depends on
the tokenizer, and on block_size, which decides the blocks that it is measured on.
"""

import json
import math
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import ROOT, UserError, preflight, run
from tools.study import Study, TrialFailed, TrialStopped, as_word, read_plan, trial_name


class Settings:
    grid: list[str] = []  # name=value,value: a setting of train.py; repeat for more settings
    range: list[str] = []  # name=low,high: the range of a setting; log-uniform if high is at least
    #                             ten times low
    trials: int = 0  # with --range: number of trials
    study: str = ""  # name of the study; "": that of the recipe's out_dir
    storage: str = ""  # a database's URL, for several machines; "": out/sweeps/NAME/study.db
    input: str = ""  # texts for data/prepare.py: each tokenizer, block_size and layout gets a
    #                             dataset made from them; "": the recipe's own dataset
    metric: Literal["bits_per_char", "val_loss"] = "bits_per_char"  # the objective; lower is better
    seeds: int = 1  # runs per trial, with seed, seed + 1 …; their mean counts
    retry: bool = False  # run failed trials once more
    heartbeat: int = 15  # seconds between heartbeats of a process; after four missing ones its
    #                             trial goes to another process


OWN = set(Settings.__annotations__)
DATA = ("tokenizer", "block_size", "layout")  # settings that a dataset depends on
# What cannot be swept, and why.
BARRED = dict.fromkeys(OWN, "is a setting of the sweep itself, not of train.py") | {
    "out_dir": "every trial has a folder of its own",
    "overwrite": "a sweep deletes no run",
    "dataset": "its held-out text must be the same for all; sweep tokenizer, block_size or layout, "
    "with --input=TEXTS",
}


def read_settings():
    """(settings, plan): the settings, checked, and the trials that they plan."""
    settings = configure(Settings, shared="all", doc=__doc__, quiet=True)
    check(settings)
    plan = read_plan(
        settings.grid, settings.range, settings.trials, settings.read, settings.seed, BARRED
    )
    check_metric(settings, plan)
    return settings, plan


def check(settings):
    """UserError lists all mistakes in the sweep's own settings."""
    problems = settings.below(trials=0, seeds=1, heartbeat=1)
    if settings.overwrite:
        problems.append("overwrite: a sweep deletes no run; give another --study=NAME")
    if settings.init_from == "resume":
        problems.append("init_from=resume: the same command resumes a sweep; leave it out")
    if settings.study and Path(settings.study).name != settings.study:
        problems.append(f"--study={settings.study}: expected a name without folders")
    if problems:
        raise UserError("\n".join(problems))


def check_metric(settings, plan):
    """UserError if the metric cannot compare the trials."""
    if settings.seeds > 1 and "seed" in plan.names:
        raise UserError("--seeds and a sweep over seed: expected one of them")
    other = [name for name in DATA if name in plan.names]
    if settings.metric == "val_loss" and other:
        raise UserError(
            f"--metric=val_loss: does not compare trials that differ in {', '.join(other)}; "
            f"take bits_per_char"
        )
    if "dpo" in (settings.stage, *plan.grid.get("stage", ())):
        if settings.metric == "bits_per_char":
            raise UserError(
                "--metric=bits_per_char: preferences have no held-out text; take val_loss"
            )
        if changed := [name for name in DPO if name in plan.names]:
            raise UserError(
                f"{', '.join(changed)}: changes the val loss of stage=dpo itself, so no metric "
                f"compares the trials; train such runs one by one, and compare their answers"
            )
    if "block_size" in plan.ranges:
        raise UserError(
            "--range: block_size: each value needs its own dataset; list some with --grid"
        )


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from data_utils import read_meta
from minigpt.common.locks import locked
from minigpt.common.report import table, write_json
from minigpt.models import checkpoint
from minigpt.plotting.output import write_figure
from minigpt.plotting.sweep import sweep_figure
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.log import STOPPED, read_runlog
from minigpt.training.settings import present_settings

DPO = ("dpo_beta",)  # what its loss is made of
HEADS = {"bits_per_char": "bits/char", "val_loss": "val loss"}
LONGER = 10  # the run proposed at the end has so many times the steps of a trial

# Settings that may differ between two starts of the same sweep: they do not change its results.
FREE = {"out_dir", "overwrite", "dataset", "device", "compile", "tensorboard", "log_interval"}
FREE |= {"sample_prompt", "sample_tokens"} | OWN


def main():
    settings, plan = read_settings()
    print(settings.describe(), flush=True)
    name = settings.study or Path(settings.out_dir).name
    root = Path("out", "sweeps", name)
    url = settings.storage or f"sqlite:///{(root / 'study.db').as_posix()}"

    root.mkdir(parents=True, exist_ok=True)
    study = Study(url, name, plan, settings.heartbeat, settings.retry)
    made_of = recipe_of(settings, plan)
    study.compare(made_of)
    compare(root / "sweep.json", made_of)
    scripts = Scripts()
    datasets = prepared(settings, plan, root, scripts) if settings.input else own(settings, plan)
    study.remember(made_of)  # only now: a mistake in the first command must not bind the next one
    write_json(root / "sweep.json", made_of)
    trainer = Trainer(settings, plan, root, scripts, datasets)
    print_plan(study, plan, root)
    try:
        study.work(trainer, scripts.wait)
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    show(study.trials(), settings, trainer, root / "curves.png")
    if stopped:
        print("stopped; the same command continues")


# -- the study -------------------------------------------------------------------------------------


def recipe_of(settings, plan):
    """What identifies the study: its plan, and every setting that all trials share."""
    free = FREE | set(plan.names)
    fixed = {name: value for name, value in settings.as_dict().items() if name not in free}
    data = settings.input or settings.dataset
    judged = dict(metric=settings.metric, seeds=settings.seeds, texts=data)
    # As lists, because their order counts: it decides a trial's position in the queue.
    plans = dict(grid=list(plan.grid.items()), range=list(plan.ranges.items()))
    return plans | judged | fixed


def compare(path, made_of):
    """UserError if the folder holds the runs of another study."""
    if not path.exists():
        return
    known = present_settings(json.loads(path.read_text(encoding="utf-8")), path)
    if known != json.loads(json.dumps(made_of)):
        raise UserError(
            f"{path.parent}: holds the runs of a sweep with other settings ({path.name} has them); "
            f"give this one another --study=NAME, or delete the folder"
        )


# -- datasets --------------------------------------------------------------------------------------


def data_knobs(settings, values):
    """The three settings of a trial that its dataset depends on."""
    return {name: values.get(name, getattr(settings, name)) for name in DATA}


def prepared(settings, plan, root, scripts):
    """Values of DATA → dataset folder, for all that the plan needs. Missing ones are prepared."""
    datasets = {}
    for values in plan.combinations(DATA):
        knobs = data_knobs(settings, values)
        folder = root / "data" / trial_name(knobs)
        datasets[tuple(knobs.values())] = folder
        words = ["data/prepare.py", *flags(knobs)]
        words += [f"--input={settings.input}", f"--dataset={folder}"]
        folder.parent.mkdir(exist_ok=True)
        with locked(folder.parent / ".lock", folder, wait=math.inf):
            if folder.exists() and read_meta(folder).get("command") == as_command(words):
                continue
            code, last = scripts.call(f"{folder}.log", *words)
            if code:
                raise UserError(f"{folder}: could not be prepared: {last}")
    return datasets


def own(settings, plan):
    """The same with the recipe's own dataset. UserError lists every value that does not fit it."""
    meta, datasets, problems = read_meta(settings.dataset), {}, []
    for values in plan.combinations(DATA):
        knobs = data_knobs(settings, values)
        datasets[tuple(knobs.values())] = Path(settings.dataset)
        if settings.init_from != "scratch":
            continue  # the parent run decides
        found = dict(tokenizer=meta["tokenizer"], block_size=meta["block_size"])
        if "layout" in values:
            found["layout"] = meta["layout"]
        for name, value in found.items():
            fits = knobs[name] == value
            if name == "tokenizer":
                fits = load_tokenizer(knobs[name]).hash == meta["tokenizer_hash"]
            if not fits:
                problems.append(
                    f"{name}={knobs[name]}: {settings.dataset} was prepared with {value}; give "
                    f"--input=TEXTS to make a dataset for each value, or leave this out"
                )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return datasets


# -- one trial -------------------------------------------------------------------------------------


class Trainer:
    """values → (score, figures): trains and evaluates a trial, once for each seed."""

    def __init__(self, settings, plan, root, scripts, datasets):
        self.settings, self.root, self.scripts = settings, root, scripts
        self.datasets, self.judge = datasets, next(iter(datasets.values()))
        self.plan, self.number = plan, 0

    def __call__(self, values):
        runs = [self.one_run(values, i) for i in range(self.settings.seeds)]
        scores = [run.pop("score") for run in runs]
        figures = dict(
            val_loss=statistics.mean(run["val_loss"] for run in runs),
            minutes=sum(run["minutes"] for run in runs),
            tokens=sum(run["tokens"] for run in runs),
            curves=[run["curve"] for run in runs],
        )
        if len(runs) > 1:
            figures["spread"] = statistics.stdev(scores)
        score = statistics.mean(scores)
        print(f"  {HEADS[self.settings.metric]} {score:.4f}, {figures['minutes']:.1f} minutes")
        return score, figures

    def one_run(self, values, i):
        """Train or resume the i-th run of a trial, and evaluate it."""
        folder = self.root / trial_name(values)
        words = self.words(values)
        if self.settings.seeds > 1:
            seed = self.settings.seed + i
            folder = folder.with_name(f"{folder.name}+seed={seed}")
            words.append(f"--seed={seed}")
        folder.mkdir(exist_ok=True)
        words.append(f"--out_dir={folder}")
        if checkpoint.exists(folder):
            words.append("--init_from=resume")
        self.step(folder, "train.py", *words)
        log = read_runlog(folder)
        if log.best is None:
            raise self.failed(f"{folder}: no evaluation gave a val loss")
        score = val_loss = float(log.val["val_loss"][log.best])
        if self.settings.metric == "bits_per_char":
            output = folder / "perplexity.json"
            words = [f"--out_dir={folder / 'best'}", f"--dataset={self.judge}"]
            words += [f"--device={self.settings.device}", f"--output={output}"]
            self.step(folder, "evaluations-perplexity.py", *words)
            score = json.loads(output.read_text(encoding="utf-8"))["text"]["bits_per_char"]
        columns = zip(*(log.val[name].tolist() for name in ("tokens", "val_loss")), strict=True)
        curve = [[tokens, loss] for tokens, loss in columns if math.isfinite(loss)]
        ends = dict(minutes=log.end("minutes"), tokens=log.end("tokens"))
        return dict(score=score, val_loss=val_loss, curve=curve) | ends

    def words(self, values):
        """The arguments of train.py for a trial, without its folder."""
        data = self.datasets[tuple(data_knobs(self.settings, values).values())]
        return [*self.settings.words(without=OWN), *flags(values), f"--dataset={data}"]

    def step(self, folder, *words):
        """Run one script of a trial; raise TrialFailed or TrialStopped for study.work()."""
        code, last = self.scripts.call(folder / "train.log", *words)
        if code < 0:
            last = f"killed by signal {-code}; the system does that when memory runs out"
        if code:
            raise self.failed(last)
        if last.startswith(STOPPED):
            print("  stopped by another process; it continues later")
            raise TrialStopped

    def failed(self, reason):
        print(f"  failed: {reason}")
        return TrialFailed(reason)


def flags(values):
    """Settings as flags of the command line."""
    return [f"--{name}={as_word(value)}" for name, value in values.items()]


def as_command(words):
    """A command as a user would type it."""
    return shlex.join(["python", *map(str, words)])


class Scripts:
    """Runs the project's scripts, one at a time. Ctrl-C and SIGTERM are passed on to them, so that
    train.py saves; `asked` counts these signals."""

    def __init__(self):
        self.asked, self._child, self._woken = 0, None, threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def call(self, log, *words):
        """Print and run a command; its output is appended to the file `log`. Returns (exit code,
        last line). KeyboardInterrupt after a signal. If the sweep is killed, the script ends when
        it prints its next line."""
        print("$", as_command(words), flush=True)
        last = ""
        command = [sys.executable, "-u", str(ROOT / words[0]), *words[1:]]
        with (
            open(log, "a", encoding="utf-8") as file,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                # Ctrl-C at the terminal reaches only us: two would end train.py without saving.
                start_new_session=os.name != "nt",
            ) as self._child,
        ):
            if self.asked:
                self._child.terminate()
            for line in self._child.stdout:
                file.write(line)
                file.flush()
                last = line.strip() or last
        code, self._child = self._child.returncode, None
        self.wait(0)
        return code, last

    def wait(self, seconds):
        """Sleep; KeyboardInterrupt if a signal arrives or arrived before."""
        if self._woken.wait(seconds):
            raise KeyboardInterrupt

    def _note(self, number, frame):
        self.asked += 1
        self._woken.set()
        if self.asked == 1:
            print("\nstopping when the trial has saved (again: at once) …", flush=True)
        # A Windows console sends Ctrl-C to all of its processes.
        if self._child and (os.name != "nt" or self.asked > 1):
            self._child.terminate()


# -- reports ---------------------------------------------------------------------------------------


def print_plan(study, plan, root):
    """Print what the sweep will try."""
    done = sum(trial.state in ("finished", "failed") for trial in study.trials())
    kind = "trials" if plan.ranges else "combinations"
    what = f"{len(plan.places())} {kind} of {', '.join(plan.names)}"
    print(f"study {study.name}: {what}, {done} of them done; runs in {root}", flush=True)


def show(trials, settings, trainer, picture):
    """Print the table, best first, draw the curves, print the command to train the best longer."""
    finished = sorted((t for t in trials if t.state == "finished"), key=lambda trial: trial.score)
    names, head = trainer.plan.names, HEADS[settings.metric]
    spread = ["±"] if settings.seeds > 1 else []
    val_loss = ["val loss"] if settings.metric != "val_loss" else []
    rows = [
        [as_word(trial.values[name]) for name in names]
        + [f"{trial.score:.4f}"]
        + [f"{trial.figures['spread']:.4f}" for _ in spread]
        + [f"{trial.figures['val_loss']:.4f}" for _ in val_loss]
        + [f"{trial.figures['minutes']:.1f}", f"{trial.figures['tokens']:,.0f}"]
        for trial in finished
    ]
    if rows:
        print("\n" + table([*names, head, *spread, *val_loss, "minutes", "tokens"], rows) + "\n")
    for trial in trials:
        if trial.state == "failed":
            print(f"failed: {trial.name}: {trial.error}")
    for state in ("running", "waiting"):
        count = sum(trial.state == state for trial in trials)
        if count:
            print(f"{state}: {count} of {len(trials)}")
    if not finished:
        print("no trial has finished yet")
        return
    curves = [
        (", ".join(map(as_word, trial.values.values())), trial.score, trial.figures["curves"])
        for trial in finished
    ]
    figure, notes = sweep_figure(curves, ", ".join(names), head)
    write_figure(figure, [picture])
    for note in notes:
        print(note)
    print(f"curves: {picture}")
    longer = [*trainer.words(finished[0].values), *budget(settings, finished[0].values)]
    longer = ["train.py", *longer, f"--out_dir={settings.out_dir}_best"]
    print(f"train the best {LONGER} times as long: {as_command(longer)}")


def budget(settings, values):
    """The flags of a run that is LONGER times as long. As in train.py, max_iters from the command
    line wins over a recipe's epochs."""

    def value(name):
        return values.get(name, getattr(settings, name))

    given = {n for n in ("epochs", "max_iters") if n in values or settings.origin(n) == f"--{n}"}
    by_steps = value("epochs") is None or given == {"max_iters"}
    names = ["max_iters" if by_steps else "epochs"]
    names += ["max_minutes"] if value("max_minutes") is not None else []
    return [f"--{name}={LONGER * value(name):.12g}" for name in names]


if __name__ == "__main__":
    run(main)
