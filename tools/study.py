"""A study: the plan of a sweep, the queue of its trials, and their results.

    plan = read_plan(["learning_rate=1e-3", "3e-4"], [], trials=0, read=settings.read)
    study = Study("sqlite:///study.db", "cpu_small", plan)
    study.remember(made_of)                      # UserError if it began with other settings
    study.work(train)                            # train(values) → (score, figures), lower is better
    study.trials()

Optuna stores it in any database that SQLAlchemy supports. Several processes and machines can work
on one study. All trials are queued at the beginning (those of a grid with their values; with a
range the values are drawn when a trial starts). Taking one is a single transaction, so no two
processes get the same trial; Optuna's GridSampler does not guarantee that. A process that runs a
trial sends a heartbeat every few seconds; a trial without heartbeats goes back into the queue.
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

PATIENCE = 4  # missing heartbeats after which a process counts as dead
LOGARITHMIC = 10  # a range whose ends differ by this factor is drawn log-uniformly
DIGITS = 3  # of drawn numbers, so that a folder's name holds the exact value
_UNFIT = re.compile(r"[^-.\w]")  # characters that a folder's name should not have


class TrialFailed(Exception):
    """A trial failed, and why. It is run again only with retry."""


class TrialStopped(Exception):
    """A trial was interrupted and can be resumed: it goes back into the queue."""


# -- the plan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """grid: name → values; all combinations are tried.  ranges: name → (low, high). With ranges,
    n_trials random draws are made instead, also of the grid's values."""

    grid: dict
    ranges: dict = field(default_factory=dict)
    n_trials: int = 0
    seed: int = 1337

    @property
    def names(self):
        """The names of the swept settings, in order."""
        return [*self.grid, *self.ranges]

    def combinations(self, names=None):
        """Every combination of the grid's values as dicts; the last setting changes fastest.
        names: use only these settings."""
        grid = {n: values for n, values in self.grid.items() if names is None or n in names}
        return [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())]

    def places(self):
        """For each trial the values that are known when it is queued."""
        return [{} for _ in range(self.n_trials)] if self.ranges else self.combinations()

    def draw(self, trial):
        """The values of an Optuna trial, drawn unless they are fixed."""
        for name, values in self.grid.items():
            trial.suggest_categorical(name, values)
        for name, (low, high) in self.ranges.items():
            log = low > 0 and high / low >= LOGARITHMIC
            suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
            suggest(name, low, high, log=log)
        return self.values(trial.params)

    def values(self, params):
        """Optuna's parameters as settings: in the plan's order, drawn numbers rounded."""
        found = {name: params[name] for name in self.names if name in params}
        for name in self.ranges:
            if isinstance(found.get(name), float):
                found[name] = float(f"{found[name]:.{DIGITS}g}")
        return found


def as_word(value):
    """A value as written after --key=."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def trial_name(values):
    """The name of a trial and its folder: "learning_rate=0.001+block_size=128". (No comma: it
    separates runs where several are named.) Paths are reduced to their last part, tokenizer files
    lose their suffix, and other characters than letters, digits, - and . become _."""
    words = {name: as_word(value) for name, value in values.items()}
    for name, value in values.items():
        if isinstance(value, str):
            short = PurePosixPath(value.replace("\\", "/"))
            words[name] = short.stem if short.suffix == ".tiktoken" else short.name
    return "+".join(f"{name}={_UNFIT.sub('_', word)}" for name, word in words.items())


def read_plan(grid, ranges, trials, read, seed=1337, barred=None):
    """The Plan of the values of --grid and --range. Both are lists of texts: "name=value", then
    further values of that name as separate texts.

    trials: number of draws if there are ranges.  read(name, word, where): the value of a setting,
    or UserError.  barred: name → why it cannot be swept.
    UserError lists all mistakes.
    """
    problems, barred = [], barred or {}
    plan = {"--grid": {}, "--range": {}}
    for where, words in (("--grid", grid), ("--range", ranges)):
        for name, texts in _by_name(words, where, problems).items():
            if name in barred:
                problems.append(f"{where}: {name}: {barred[name]}")
            elif where == "--range" and name in plan["--grid"]:
                problems.append(f"{name}: is in --grid and --range; leave one out")
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
    """A value of a type that Optuna can store: a list as one text."""
    return ",".join(value) if isinstance(value, list) else value


def _by_name(words, where, problems):
    """name → its texts. A text without a name belongs to the name before it."""
    found, name = {}, None
    for word in words:
        before, equals, text = word.partition("=")
        if equals and before in found:
            problems.append(f"{where}: {before}: named twice; write all its values after one =")
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
    return f"{name}: {as_word(twice[0])} is there twice" if twice else None


def _check_range(name, values):
    numbers = all(type(value) in (int, float) for value in values)
    if len(values) == 2 and numbers and values[0] < values[1]:
        return None
    shown = ",".join(map(as_word, values))
    return f"{name}={shown}: expected two numbers, the lower one first: {name}=low,high"


def _check_names(plan):
    """UserError if two combinations would share a folder."""
    named = {}
    for values in plan.combinations():
        other = named.setdefault(trial_name(values), values)
        if other is not values:
            raise UserError(
                f"--grid: {values} and {other} would share the folder {trial_name(values)}; give "
                f"the files other names"
            )


# -- trials ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One trial of a study. state: "waiting", "running", "finished" or "failed"; score: None unless
    finished, lower is better; figures: more results of train(); error: why it failed."""

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
    """The study called `name` in the database at `url`, created if missing.

    heartbeat: seconds between heartbeats.  retry: put failed trials back into the queue.
    UserError if Optuna or the database's driver is missing, or the database cannot be reached.
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
        """UserError if the study began with other settings than `made_of` (JSON), with a line for
        each difference."""
        known, made_of = self._study.user_attrs.get("made_of"), json.loads(json.dumps(made_of))
        known = known and present_settings(known, f"study {self.name}")
        if known in (None, made_of):
            return
        lines = [
            f"study {self.name} began with other settings; give these another --study=NAME, "
            f"or continue with those:"
        ]
        for name in dict.fromkeys([*known, *made_of]):
            if known.get(name) != made_of.get(name):
                lines.append(f"  {name}: {known.get(name)} then, {made_of.get(name)} now")
        raise UserError("\n".join(lines))

    def remember(self, made_of):
        """Store `made_of` in the study; compare() checks it from now on."""
        self.compare(made_of)
        self._study.set_user_attr("made_of", made_of)

    def trials(self):
        """All planned trials, in the order of the plan."""
        latest = {}
        for (place, _), trial in sorted(self._living().items()):
            latest[place] = trial  # the last round counts
        return [self._view(trial) for trial in latest.values() if "twin" not in trial.user_attrs]

    def work(self, train, wait=time.sleep):
        """Run the trials of the queue, then wait for the trials of other processes, which come back
        if these die.

        train(values) → (score, figures): figures are plain values by name. It may raise TrialFailed
        and TrialStopped. KeyboardInterrupt, from train() or from wait(seconds), puts the trial back
        and ends the work.
        """
        errors, noted = self._optuna.exceptions, False
        with _database_errors(self._url):
            self._fill()
        while True:
            wait(0)
            with _database_errors(self._url):
                self._take_back()
                states = [trial.state for trial in self.trials()]
                if "waiting" in states:
                    noted = False
                    try:
                        self._study.optimize(
                            partial(self._try, train), 1, catch=(TrialFailed, TrialStopped)
                        )
                    except errors.UpdateFinishedTrialError:
                        print(
                            "this process sent no heartbeat for too long: another one has its "
                            "trial now"
                        )
                    continue
            if "running" not in states:
                return
            if not noted:
                noted = True
                print(
                    f"waiting for {states.count('running')} of {len(states)} trials that other "
                    f"processes run; Ctrl-C ends the waiting"
                )
            wait(self.heartbeat)

    # -- the queue ---------------------------------------------------------------------------------

    def _living(self):
        """(index in the plan, round) → its Optuna trial: the first that is not lost. A lost one was
        interrupted or came second; a later one replaces it."""
        found = {}
        for trial in self._study.get_trials(deepcopy=False):
            attrs, state = trial.user_attrs, trial.state.name
            lost = state == "PRUNED" or (state == "FAIL" and "error" not in attrs)
            if "slot" in attrs and not lost and "stopped" not in attrs:
                found.setdefault(tuple(attrs["slot"]), trial)
        return found

    def _fill(self):
        """Queue the missing trials. Two processes may do so at the same time: then some are queued
        twice, and _try() skips the second."""
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
        """Put the trials of dead processes back into the queue."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            self._optuna.storages.fail_stale_trials(self._study)

    def _try(self, train, trial):
        slot = trial.user_attrs.get("slot")
        if slot is None or self._living()[tuple(slot)].number != trial.number:
            raise self._optuna.TrialPruned  # another process was faster
        # A seed for each trial: one seed for the process would draw the same values at each start.
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
        """A finished trial with the same values, or None. Its score is used."""
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
    """Queue a lost trial again, with its values."""
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
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the sweep reports its trials itself
    return optuna


@contextlib.contextmanager
def _database_errors(url):
    """A context in which errors of the database become UserErrors."""
    import optuna
    import sqlalchemy

    kinds = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
    try:
        yield
    except Exception as error:
        # Optuna may raise another error while it handles the first: follow the chain.
        first = error
        while first is not None and not isinstance(first, kinds):
            first = first.__cause__ or first.__context__
        if first is None:
            raise
        reason = str(first.__cause__ or first).splitlines()[0]
        raise UserError(
            f"--storage={_without_password(url)}: {reason}; expected a database's URL, as "
            f"sqlite:///study.db or postgresql://user:password@host/name; finished trials are kept"
        ) from None


def _without_password(url):
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _open(optuna, url, heartbeat, tries=3):
    """The storage at `url`. If two processes create its tables at the same time, one of them fails
    and tries again."""
    import sqlalchemy

    class Storage(optuna.storages.RDBStorage):
        def record_heartbeat(self, trial_id):
            # One lost heartbeat does not matter.
            with contextlib.suppress(optuna.exceptions.StorageInternalError):
                super().record_heartbeat(trial_id)

    # SQLAlchemy's own choice for PostgreSQL is psycopg2, the driver before psycopg.
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
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
    """Every transaction takes SQLite's lock when it begins. By default it takes the lock with its
    first write: two processes could both read that a trial is waiting, and both take it."""
    from sqlalchemy import event

    def connect(connection, record):
        connection.isolation_level = None  # else the driver begins transactions itself

    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections that were opened before
