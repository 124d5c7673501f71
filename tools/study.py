"""A study: what a sweep is to try, who tries it, and what came of it.

    plan = read_plan(["learning_rate=1e-3", "3e-4"], [], trials=0, read=settings.read)
    study = Study("sqlite:///study.db", "cpu_small", plan)
    study.remember(made_of)                      # UserError where it was begun with something else
    study.work(train)                            # train(values) → (score, figures), lower is better
    study.trials()

Optuna keeps it, in any database that SQLAlchemy reaches, and several processes and machines may
work at one study. Each trial stands in the queue from the beginning (a grid's with its values; with
a range they are drawn when its turn comes), and is taken from it in one transaction: so no two get
the same one, which Optuna's GridSampler does not promise. Whoever tries one gives a sign of life
every few seconds; a trial without one goes back into the queue.
"""

import contextlib
import itertools
import json
import re
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from minigpt.common.errors import UserError
from minigpt.training.settings import present_settings

PATIENCE = 4  # times the heartbeat without a sign of life: the process is gone
LOGARITHMIC = 10  # a range whose ends differ by so much is drawn from its logarithm
DIGITS = 3  # of a number that is drawn: what its folder is called is what it is
_UNFIT = re.compile(r"[^-.\w]")  # for the name of a folder


class TrialFailed(Exception):
    """A trial that came to nothing, and why. It is not tried again unless that is asked for."""


class TrialStopped(Exception):
    """A trial that was ended early and can go on: it goes back into the queue."""


# -- what is to be tried ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """grid: name → its values, all combinations of which are tried.  ranges: name → (low, high);
    where there are any, n_trials draws are made instead, of the grid's values too."""

    grid: dict
    ranges: dict = field(default_factory=dict)
    n_trials: int = 0
    seed: int = 1337

    @property
    def names(self):
        """The knobs that are swept, in their order."""
        return [*self.grid, *self.ranges]

    def combinations(self, names=None):
        """Every combination of the grid's values (of the knobs `names` alone, those of them that
        are in the grid), as dicts; the last knob changes fastest."""
        grid = {n: values for n, values in self.grid.items() if names is None or n in names}
        return [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())]

    def places(self):
        """For each trial what is known of its values when it enters the queue."""
        return [{} for _ in range(self.n_trials)] if self.ranges else self.combinations()

    def draw(self, trial):
        """The values of an Optuna trial, which draws them unless they are fixed."""
        for name, values in self.grid.items():
            trial.suggest_categorical(name, values)
        for name, (low, high) in self.ranges.items():
            log = low > 0 and high / low >= LOGARITHMIC
            suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
            suggest(name, low, high, log=log)
        return self.values(trial.params)

    def values(self, params):
        """Optuna's parameters as a run has them: in the plan's order, drawn numbers rounded."""
        found = {name: params[name] for name in self.names if name in params}
        for name in self.ranges:
            if isinstance(found.get(name), float):
                found[name] = float(f"{found[name]:.{DIGITS}g}")
        return found


def as_word(value):
    """A value as it is written behind --key=."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def trial_name(values):
    """What a trial and its folder are called: "learning_rate=0.001+block_size=128" (a comma parts
    runs where several are named). Of a path the last part alone, of a tokenizer's file without its
    ending, and nothing that a folder's name cannot hold."""
    words = {name: as_word(value) for name, value in values.items()}
    for name, value in values.items():
        if isinstance(value, str):
            short = PurePosixPath(value.replace("\\", "/"))
            words[name] = short.stem if short.suffix == ".tiktoken" else short.name
    return "+".join(f"{name}={_UNFIT.sub('_', word)}" for name, word in words.items())


def read_plan(grid, ranges, trials, read, seed=1337, barred=None):
    """The Plan of the words behind --grid and --range, which lists of texts hold: "name=value",
    and further values of that name each in a text of its own.

    trials: how many draws, where there are ranges.  read(name, word, where): a knob's value, or
    UserError.  barred: name → why it cannot be swept.
    UserError names all mistakes.
    """
    problems, barred = [], barred or {}
    plan = {"--grid": {}, "--range": {}}
    for where, words in (("--grid", grid), ("--range", ranges)):
        for name, texts in _by_name(words, where, problems).items():
            if name in barred:
                problems.append(f"{where}: {name}: {barred[name]}")
            elif where == "--range" and name in plan["--grid"]:
                problems.append(f"{name}: stands behind --grid and --range; leave one out")
            else:
                try:
                    values = tuple(_plain(read(name, text, where)) for text in texts)
                except UserError as error:
                    problems.append(str(error))
                    continue
                check = _check_grid if where == "--grid" else _check_range
                problem = check(name, values)
                problems += [f"{where}: {problem}"] if problem else []
                plan[where][name] = values
    if ranges and trials < 1:
        problems.append("--range: how many trials? Write --trials=20")
    if trials and not ranges:
        problems.append(
            "--trials: a grid has as many trials as combinations; leave it out, or give a --range"
        )
    if not grid and not ranges:
        problems.append("nothing to try: write --grid learning_rate=1e-3,3e-4 or --range …")
    if problems:
        raise UserError("\n".join(problems))
    plan = Plan(plan["--grid"], plan["--range"], trials, seed)
    _check_names(plan)
    return plan


def _plain(value):
    """A value as Optuna may have it: a list as the word it was."""
    return ",".join(value) if isinstance(value, list) else value


def _by_name(words, where, problems):
    """name → its texts. A text without a name is one more of the name before."""
    found, name = {}, None
    for word in words:
        before, equals, text = word.partition("=")
        if equals and before in found:
            problems.append(f"{where}: {before}: named twice; write all its values behind one =")
        elif equals:
            name = before
            found[name] = [text]
        elif name is None:
            problems.append(f"{where}={word}: expected name=value,value")
        else:
            found[name].append(word)
    return found


def _check_grid(name, values):
    twice = [value for value in values if values.count(value) > 1]
    return f"{name}: {as_word(twice[0])} stands there twice" if twice else None


def _check_range(name, values):
    numbers = all(type(value) in (int, float) for value in values)
    if len(values) == 2 and numbers and values[0] < values[1]:
        return None
    shown = ",".join(map(as_word, values))
    return f"{name}={shown}: expected two numbers, the lower one first: {name}=low,high"


def _check_names(plan):
    """Each combination has a folder of its own."""
    named = {}
    for values in plan.combinations():
        other = named.setdefault(trial_name(values), values)
        if other is not values:
            raise UserError(
                f"--grid: {values} and {other} would share the folder {trial_name(values)}; give "
                f"the files other names"
            )


# -- what came of it -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One trial of a study. state: "waiting", "running", "finished" or "failed"; score: of a
    finished one, lower is better; figures: what train() gave besides; error: why it failed."""

    number: int
    values: dict
    state: str
    score: float | None
    figures: dict
    error: str | None

    @property
    def name(self):
        return trial_name(self.values)


class Study:
    """The study called `name` in the database at `url`, made if it is not there.

    heartbeat: seconds between signs of life.  retry: put failed trials back into the queue.
    UserError where Optuna or the database's driver is missing, or the database cannot be reached.
    """

    def __init__(self, url, name, plan, heartbeat=15, retry=False):
        self.name, self.plan, self.heartbeat, self._optuna = name, plan, heartbeat, _optuna()
        with _database_errors(url):
            storage = _open(self._optuna, url, heartbeat)
            self._study = self._optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True
            )
        self._url, self._retry = url, retry

    def compare(self, made_of):
        """UserError where the study was begun with something else than `made_of` (JSON), with a
        line for each difference."""
        known, made_of = self._study.user_attrs.get("made_of"), json.loads(json.dumps(made_of))
        known = known and present_settings(known, f"study {self.name}")
        if known in (None, made_of):
            return
        lines = [
            f"study {self.name} was begun with other settings; give these another --study=NAME, "
            f"or go on with those:"
        ]
        for name in dict.fromkeys([*known, *made_of]):
            if known.get(name) != made_of.get(name):
                lines.append(f"  {name}: {known.get(name)} then, {made_of.get(name)} now")
        raise UserError("\n".join(lines))

    def remember(self, made_of):
        """Hold the study to `made_of` from now on."""
        self.compare(made_of)
        self._study.set_user_attr("made_of", made_of)

    def trials(self):
        """All that are planned, as Trials in the order of the plan."""
        latest = {}
        for (place, _), trial in sorted(self._living().items()):
            latest[place] = trial  # the last round is what counts
        return [self._view(trial) for trial in latest.values() if "twin" not in trial.user_attrs]

    def work(self, train, wait=time.sleep):
        """Try what is in the queue, and then wait for what other processes are trying, which comes
        back if they die.

        train(values) → (score, figures): figures are plain values, by name. It may raise
        TrialFailed and TrialStopped; KeyboardInterrupt, from it or from wait(seconds), puts its
        trial back and ends the work.
        """
        errors, told = self._optuna.exceptions, False
        with _database_errors(self._url):
            self._fill()
        while True:
            wait(0)
            with _database_errors(self._url):
                self._take_back()
                states = [trial.state for trial in self.trials()]
                if "waiting" in states:
                    told = False
                    try:
                        self._study.optimize(
                            partial(self._try, train), 1, catch=(TrialFailed, TrialStopped)
                        )
                    except errors.UpdateFinishedTrialError:
                        print(
                            "this process gave no sign of life for too long: its trial is "
                            "another's now"
                        )
                    continue
            if "running" not in states:
                return
            if not told:
                told = True
                print(
                    f"waiting for {states.count('running')} of {len(states)} trials, which other "
                    f"processes have; Ctrl-C ends the waiting"
                )
            wait(self.heartbeat)

    # -- the queue ---------------------------------------------------------------------------------

    def _living(self):
        """(place in the plan, round) → the Optuna trial that fills it: the first that is not lost.
        A lost one was ended early, or came too late; a later one has taken its place."""
        found = {}
        for trial in self._study.get_trials(deepcopy=False):
            attrs, state = trial.user_attrs, trial.state.name
            lost = state == "PRUNED" or (state == "FAIL" and "error" not in attrs)
            if "slot" in attrs and not lost and "stopped" not in attrs:
                found.setdefault(tuple(attrs["slot"]), trial)
        return found

    def _fill(self):
        """Queue what no trial stands for. Two processes may do so at once: then some places have
        two trials, and _try() leaves the second alone."""
        living = self._living()
        rounds = dict(sorted(living))
        for place, fixed in enumerate(self.plan.places()):
            number = rounds.get(place, 0)
            there = living.get((place, number))
            if there and self._retry and there.state.name == "FAIL":
                number, there, fixed = number + 1, None, there.params
            if there is None:
                self._study.enqueue_trial(fixed, user_attrs={"slot": [place, number]})

    def _take_back(self):
        """Put back what a process has that is gone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            self._optuna.storages.fail_stale_trials(self._study)

    def _try(self, train, trial):
        slot = trial.user_attrs.get("slot")
        if slot is None or self._living()[tuple(slot)].number != trial.number:
            raise self._optuna.TrialPruned  # another process was faster
        # A seed for each: a generator that begins anew at each start would draw the same again.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self.plan.seed + trial.number, constant_liar=True
        )
        values = self.plan.draw(trial)
        twin = self._twin(trial, values)
        if twin:
            trial.set_user_attr("twin", twin.number)
            return twin.score
        try:
            score, figures = train(values)
        except TrialFailed as error:
            trial.set_user_attr("error", str(error))
            raise
        except (TrialStopped, KeyboardInterrupt):
            trial.set_user_attr("stopped", True)
            _put_back(self._study, self._study.get_trials(deepcopy=False)[trial.number])
            raise
        for name, value in figures.items():
            trial.set_user_attr(name, value)
        return score

    def _twin(self, trial, values):
        """The finished trial that drew the same values, if there is one: its score serves."""
        if not self.plan.ranges:
            return None
        for other in self.trials():
            if other.values == values and other.number != trial.number:
                if other.state == "finished":
                    return other
                if other.number < trial.number:
                    raise self._optuna.TrialPruned
        return None

    def _view(self, trial):
        states = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "finished"}
        return Trial(
            trial.number,
            self.plan.values(trial.system_attrs.get("fixed_params", {}) | trial.params),
            states.get(trial.state.name, "failed"),
            trial.value,
            {name: value for name, value in trial.user_attrs.items() if name != "slot"},
            trial.user_attrs.get("error"),
        )


def _put_back(study, trial):
    """A trial that was lost enters the queue again, with the values that it has."""
    from optuna.trial import TrialState, create_trial

    attrs = {name: value for name, value in trial.user_attrs.items() if name != "stopped"}
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attrs,
            system_attrs=trial.system_attrs,
        )
    )


# -- the database ----------------------------------------------------------------------------------


def _optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("a sweep needs Optuna: first, pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the sweep tells of its trials itself
    return optuna


@contextlib.contextmanager
def _database_errors(url):
    """Within it, what the database cannot do becomes a UserError."""
    import optuna
    import sqlalchemy

    kinds = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
    try:
        yield
    except Exception as error:
        # Optuna may stumble over the first error: what it then raises has that one behind it.
        first = error
        while first is not None and not isinstance(first, kinds):
            first = first.__cause__ or first.__context__
        if first is None:
            raise
        reason = str(first.__cause__ or first).splitlines()[0]
        raise UserError(
            f"--storage={_without_password(url)}: {reason}; expected a database's URL, as "
            f"sqlite:///study.db or postgresql://user:password@host/name; what is finished is kept"
        ) from None


def _without_password(url):
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _open(optuna, url, heartbeat, tries=3):
    """The storage at `url`. Two processes that make its tables at once get in each other's way, so
    it is tried again."""
    import sqlalchemy

    class Storage(optuna.storages.RDBStorage):
        def record_heartbeat(self, trial_id):
            # One sign of life that does not get through is no death.
            with contextlib.suppress(optuna.exceptions.StorageInternalError):
                super().record_heartbeat(trial_id)

    sqlite = url.startswith("sqlite")
    for left in reversed(range(tries)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = Storage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else None,
                    heartbeat_interval=heartbeat,
                    grace_period=PATIENCE * heartbeat,
                    heartbeat_stale_trial_callback=_put_back,
                )
            break
        except ImportError as error:
            raise UserError(
                f"--storage={_without_password(url)}: the driver of this database is missing "
                f"({error.__cause__ or error}); first, pip install it"
            ) from None
        except sqlalchemy.exc.DBAPIError:
            if not left:
                raise
            time.sleep(1)
    if sqlite:
        _lock_before_reading(storage.engine)
    return storage


def _lock_before_reading(engine):
    """Every transaction takes SQLite's lock when it begins. Left to itself it would take it when
    it first writes, and two processes that had both read that a trial waits would both get it."""
    from sqlalchemy import event

    def connect(connection, record):
        connection.isolation_level = None  # else the driver begins, in its own way

    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections that were made before
