"""Settings of a script: defaults ← recipe ← --key=value, typed and checked.

    python SCRIPT [recipe.py …] [--key=value …]      later wins; --help lists the settings
    python SCRIPT --key=one,two --key three          a setting with several values gets all three

Settings are annotated assignments with a comment: shared ones in config/train_config.py, a script's
own ones in a class. All mistakes are reported together, one line each, with exit code 2.
"""

import ast
import difflib
import functools
import importlib
import inspect
import io
import operator
import os
import re
import sys
import textwrap
import tokenize
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import ROOT, UserError
from minigpt.common.types import coerce, type_name

DEFAULTS = ROOT / "config" / "train_config.py"
GENERATION = ("kernels",)  # its settings that training does not read: not of shared="all"
# Other names of a knob that flags and recipes may use, the older one of MiniGPT and nanoGPT's:
# name → (its type, the knob, the knob's value from its value).
ALIASES = {
    "if_trav": (bool, "shuffle", operator.not_),
    "decay_lr": (bool, "schedule", {True: "cosine", False: "constant"}.get),
    "dpo_guard_dataset": (str | None, "guard_dataset", lambda value: value),
    "dpo_max_forgetting": (float | None, "max_forgetting", lambda value: value),
}
# nanoGPT's names whose meaning depends on another setting: name → (its type, the knob that it is
# about). See _resolve_foreign().
DEPENDENT = {"min_lr": (float, "min_lr_ratio"), "lr_decay_iters": (int, "max_iters")}
# nanoGPT's names that have no knob: name → (the value that changes nothing, what there is instead).
_CURVES = "the curves are in out_dir (visualize.py), and --tensorboard=true writes TensorBoard's"
_TOKEN = "the tokenizer determines it (EOT is 50256 with --tokenizer=gpt2)"
FOREIGN = {
    "wandb_log": (False, _CURVES),
    "wandb_project": (None, _CURVES),
    "wandb_run_name": (None, _CURVES),
    "always_save_checkpoint": (True, "each evaluation saves, and best/ keeps the lowest val loss"),
    "eval_only": (False, "evaluations-perplexity.py measures a run"),
    "backend": (None, "the device determines it; torchrun starts several processes"),
    "EOT_TOKEN": (None, _TOKEN),
    "PAD_TOKEN": (None, _TOKEN),
}
# Settings in which ~ is a character, not the home folder.
TEXTS = ("start", "sample_prompt", "ask", "api_key", "auth", "admin_password")


@dataclass
class Knob:
    """One setting: its name, type, default, comment, and the section of --help that lists it."""

    name: str
    type: object
    default: object
    comment: str
    section: str


class Settings:
    """The resolved values as attributes, each with its origin."""

    def __init__(self, knobs, script):
        self._knobs = {knob.name: knob for knob in knobs}
        self._origin = {knob.name: "default" for knob in knobs}
        self._script, self._words = script, []
        for knob in knobs:
            setattr(self, knob.name, knob.default)

    def set(self, name, value, origin):
        """Set a value; `origin` says where it is from."""
        setattr(self, name, value)
        self._origin[name] = origin

    def origin(self, name):
        """Where a value is from: "default", "config/x.py:12", "--name", or inherit()'s source."""
        return self._origin[name]

    def as_dict(self):
        """All values by name."""
        return {name: getattr(self, name) for name in self._knobs}

    def types(self):
        """The annotation of each knob by name."""
        return {name: knob.type for name, knob in self._knobs.items()}

    def words(self, without=()):
        """The command line's arguments without the flags of the settings `without`, for a script
        that runs another one."""
        return [w for w in self._words if w.lstrip("-").partition("=")[0] not in without]

    def read(self, name, word, where):
        """The text `word` converted to the type of the setting `name`; nothing is set. UserError,
        naming `where`, for an unknown name or a value of a wrong type."""
        problems = []
        knob, _ = _knob_of(name, self._knobs)
        if knob is None:
            _unknown(name, self._knobs, where, problems)
        else:
            good, value = _assign(name, word, _parse, knob, where, problems)
            if good:
                return value
        raise UserError("\n".join(problems))

    def below(self, **least):
        """Lines about settings that are below their minimum (`least`: name → minimum). None is
        allowed."""
        lines = []
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                none = ", or none" if type(None) in typing.get_args(self._knobs[name].type) else ""
                lines.append(
                    f"{self._origin[name]}: {name}={_show(value)}: expected at least {bound}{none}"
                )
        return lines

    def inherit(self, values, source):
        """Replace defaults by `values` (name → value) from a checkpoint called `source`.

        UserError, naming every one, if a value that the user gave contradicts them.
        """
        problems = []
        for name, value in values.items():
            if name not in self._knobs or getattr(self, name) == value:
                continue
            if self._origin[name] == "default":
                self.set(name, value, source)
            else:
                problems.append(
                    f"{self._origin[name]}: {name}={_show(getattr(self, name))} contradicts "
                    f"{source}, which has {_show(value)}: leave {name} out"
                )
        if problems:
            raise UserError("\n".join(problems))

    def describe(self):
        """The settings that are not default, a line each, with their origins."""
        changed = [name for name in self._knobs if self._origin[name] != "default"]
        if not changed:
            return f"{self._script}: all settings at their defaults"
        width = max(len(name) for name in changed)
        values = {name: _show(getattr(self, name)) for name in changed}
        value_width = min(40, max(len(value) for value in values.values()))
        lines = [
            f"  {name:<{width}} = {values[name]:<{value_width}}  ({self._origin[name]})"
            for name in changed
        ]
        return "\n".join([f"{self._script}: settings that are not default", *lines])


def configure(own=None, shared="", doc="", argv=None, quiet=False):
    """Resolve a script's settings from defaults, recipes and the command line.

    own:    a class of annotated assignments, the script's own settings
    shared: names of the settings in config/train_config.py that this script reads; "all" for
            all of training
    doc:    the script's docstring, shown by --help
    argv:   the arguments after the script's name; None takes sys.argv
    quiet:  do not print the settings that are not default
    Returns Settings. UserError lists every mistake, a line each.
    """
    argv = sys.argv[1:] if argv is None else argv
    script = Path(sys.argv[0]).name
    family = _knobs_of(importlib.import_module("config.train_config"))
    mine = _knobs_of(own) if own else []
    names = {knob.name for knob in mine}
    everywhere = {knob.name for knob in family} - set(GENERATION)
    wanted = everywhere if shared == "all" else set(shared.split())
    knobs = mine + [k for k in family if k.name in wanted and k.name not in names]

    if {"-h", "--help"} & set(argv):
        print(_help(script, doc, knobs))
        sys.exit(0)

    settings = Settings(knobs, script)
    settings._words = argv = _joined(argv, knobs)
    # A recipe describes a whole run; a script uses the part of it that it reads.
    everything = {knob.name: knob for knob in [*family, *mine]}
    values = {name: knob.default for name, knob in everything.items()}
    problems, dependent = [], {}
    for word in argv:  # in order: later wins
        if word.startswith("-"):
            read = _read_flag(word, settings, everything, problems)
        elif word.endswith(".py") and Path(word).resolve() == DEFAULTS:
            # The file of all defaults: a checkpoint may override its values.
            read = [(knob.name, everything[knob.name].default, "default") for knob in family]
        else:
            read = _read_recipe(word, everything, values, problems)
        for name, value, origin in read:
            if name in DEPENDENT:
                dependent[name] = value, origin
                continue
            if type(value) is list and origin == f"--{name}" == settings._origin.get(name):
                value = values[name] + value  # a repeated flag adds values
            values[name] = value
            if name in settings._knobs:
                settings.set(name, value, origin)
    _resolve_foreign(dependent, settings, problems)
    if problems:
        raise UserError("\n".join(problems))
    if not quiet:
        print(settings.describe(), flush=True)
    return settings


# -- reading knobs ---------------------------------------------------------------------------------


@functools.cache
def _knobs_of(source):
    """The annotated assignments of a module or class, in order, with comments and sections."""
    text = textwrap.dedent(inspect.getsource(source))
    tree = ast.parse(text)
    body = tree.body if inspect.ismodule(source) else tree.body[0].body
    comments = {
        token.start[0]: (token.start[1], token.string.lstrip("# ").rstrip(), token.line)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    types_by_name = typing.get_type_hints(source)
    statements = {s.end_lineno: s for s in body if isinstance(s, ast.AnnAssign)}
    knobs, section, last = [], "", None
    for line in range(1, len(text.splitlines()) + 1):
        comment = comments.get(line)
        if line in statements:
            name = statements[line].target.id
            default = getattr(source, name)
            text_beside = comment[1] if comment else ""
            knobs.append(Knob(name, types_by_name[name], default, text_beside, section))
            last = line
        elif comment and comment[1].startswith("-- "):
            section = comment[1].strip("- ")
        elif comment and comment[2].lstrip().startswith("#") and line - 1 == last:
            knobs[-1].comment += " " + comment[1]  # a comment continued on the next line
            last = line
    return knobs


# -- reading values --------------------------------------------------------------------------------


def _show(value):
    if value is None or isinstance(value, bool):
        return str(value).lower()
    value = ",".join(value) if isinstance(value, list) else value
    return repr(value) if isinstance(value, str) else str(value)


def _parse(word, kind):
    """The text of a flag converted to the type `kind`, or ValueError."""
    if isinstance(kind, types.UnionType):
        for part in sorted(typing.get_args(kind), key=lambda part: part is not type(None)):
            try:
                return _parse(word, part)
            except ValueError:
                pass
        raise ValueError
    if kind in (str, list[str]) or typing.get_origin(kind) is typing.Literal:
        return coerce(word, kind)
    if kind is bool:
        return coerce({"true": True, "false": False}.get(word.lower()), bool)
    if kind is type(None):
        return coerce(None if word.lower() == "none" else word, kind)
    return coerce(kind(word), kind)


def _knob_of(name, knobs):
    """(the Knob by which the name `name` is read, the conversion of its value): (None, …) for an
    unknown name."""
    if name in DEPENDENT and DEPENDENT[name][1] in knobs:
        return Knob(name, DEPENDENT[name][0], None, "", ""), lambda value: value
    if name in ALIASES and ALIASES[name][1] in knobs:
        kind, _, convert = ALIASES[name]
        return Knob(name, kind, None, "", ""), convert
    return knobs.get(name), lambda value: value


def _resolve_foreign(dependent, settings, problems):
    """Set what nanoGPT's min_lr and lr_decay_iters mean here; a line where that is nothing.
    dependent: name → (value, origin)."""
    known = settings._knobs
    if "min_lr" in dependent and "min_lr_ratio" in known:
        (low, origin), peak = dependent["min_lr"], settings.learning_rate
        if 0 <= low <= peak and peak:
            settings.set("min_lr_ratio", low / peak, origin)
        else:
            problems.append(f"{origin}: min_lr={low:g}: expected 0 to learning_rate={peak:g}")
    if "lr_decay_iters" in dependent and "max_iters" in known:
        steps, origin = dependent["lr_decay_iters"]
        if steps != settings.max_iters:
            problems.append(
                f"{origin}: lr_decay_iters={steps}: the learning rate always decays until the run "
                f"ends, here max_iters={settings.max_iters}: leave it out"
            )


def _target_name(name):
    """The name of the knob that the name `name` sets."""
    return ALIASES[name][1] if name in ALIASES else name


def _is_harmless(name, value, where, problems):
    """Whether `name` is one of FOREIGN; a line in `problems` unless its value changes nothing."""
    if name not in FOREIGN:
        return False
    harmless, instead = FOREIGN[name]
    if harmless is None or str(value).lower() != str(harmless).lower():
        problems.append(f"{where}: {name}={value}: {instead}: leave it out")
    return True


def _expanded(value):
    """Paths (one, or several with commas between; also after FILE: or hf:) with ~ as the home."""
    if isinstance(value, list):
        return [_expanded(part) for part in value]
    home = lambda found: found[1] + os.path.expanduser(found[2])  # noqa: E731
    return re.sub(r"(^|,\s*|^FILE:|^hf:)(~[\w.-]*)(?=[/\\,]|$)", home, value)


def _assign(name, raw, reader, knob, where, problems):
    """(True, the converted value), or (False, None) and a line added to `problems`."""
    try:
        value = reader(raw, knob.type)
        is_path = isinstance(value, (str, list)) and name not in TEXTS
        return True, _expanded(value) if is_path else value
    except (ValueError, OverflowError):
        shown = raw if reader is _parse else _show(raw)
        expected = type_name(knob.type)
        hint = ""
        options = typing.get_args(knob.type)
        if typing.get_origin(knob.type) is typing.Literal:
            close = difflib.get_close_matches(str(raw), list(map(str, options)), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"{where}: {name}={shown}: expected {expected}{hint}")
        return False, None


def _unknown(name, knobs, where, problems):
    close = difflib.get_close_matches(name.replace("-", "_"), list(knobs), 1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "--help lists the settings"
    problems.append(f"{where}: unknown key {name}; {hint}")


def _joined(argv, knobs):
    """The arguments, with `--key one,two` of a setting with several values as --key=one,two."""
    several = {f"--{knob.name}" for knob in knobs if knob.type == list[str]}
    words = []
    for word in argv:
        if words and words[-1] in several and not word.startswith("-"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _read_flag(word, settings, everything, problems):
    """Yield (name, value, origin) for --name=value, unless it is a mistake."""
    name, equals, raw = word.lstrip("-").partition("=")
    where = f"--{name}"
    knob, convert = _knob_of(name, settings._knobs)
    if not word.startswith("--"):
        problems.append(f"{word}: expected --key=value")
    elif _is_harmless(name, raw if equals else "true", where, problems):
        return
    elif knob is None and (name in ALIASES or name in DEPENDENT):
        ours = (ALIASES | DEPENDENT)[name][1]
        problems.append(
            f"{where}: {settings._script} does not read {ours}; --help lists its settings"
        )
    elif knob is None and name in everything:
        problems.append(
            f"{where}: {settings._script} does not read {name}; --help lists its settings"
        )
    elif knob is None:
        _unknown(name, settings._knobs, where, problems)
    elif not equals and knob.type is not bool:
        problems.append(f"{where}: no value; write --{name}=… ({type_name(knob.type)})")
    else:
        raw = raw if equals else "true"
        good, value = _assign(name, raw, _parse, knob, where, problems)
        if good:
            yield _target_name(name), convert(value), where


# -- recipes ---------------------------------------------------------------------------------------

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def _evaluate(node, names):
    """The value of an expression of constants, earlier names and arithmetic, or SyntaxError."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Name):
        raise SyntaxError(f"{node.id} is not assigned before this line")
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _evaluate(node.left, names), _evaluate(node.right, names)
        return _ARITHMETIC[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_evaluate(node.operand, names))
    raise SyntaxError("a recipe's values are constants, earlier names and arithmetic")


def _read_recipe(word, knobs, values, problems):
    """Yield (name, value, origin) for each assignment of the recipe file `word`."""
    path = Path(word)
    if path.suffix != ".py":
        problems.append(f"{word}: expected a recipe (FILE.py) or --key=value")
        return
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except OSError:
        recipes = [f"config/{p.name}" for p in sorted((ROOT / "config").glob("*.py"))]
        recipes = [r for r in recipes if "__init__" not in r and "configurator" not in r]
        close = difflib.get_close_matches(word, recipes, 1)
        here = Path() if Path.cwd() == ROOT else ROOT  # elsewhere a relative path finds nothing
        hint = f"; did you mean {here / close[0]}?" if close else "; recipes are in config/"
        problems.append(f"{word}: no such recipe{hint}")
        return
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        problems.append(f"{word}:{line}: not Python: {getattr(error, 'msg', error)}")
        return
    names = dict(values)
    for statement in tree.body:
        where = f"{word}:{statement.lineno}"
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if is_docstring:
            continue
        target = _target(statement)
        if target is None:
            problems.append(f"{where}: a recipe holds only assignments, name = value")
            continue
        try:
            raw = _evaluate(statement.value, names)
        except (SyntaxError, TypeError, ValueError, ArithmeticError) as error:
            problems.append(f"{where}: {target}: {getattr(error, 'msg', None) or error}")
            continue
        names[target] = raw
        if target.startswith("_"):
            continue  # a variable of the recipe's own arithmetic
        if _is_harmless(target, raw, where, problems):
            continue
        knob, convert = _knob_of(target, knobs)
        if knob is None:
            _unknown(target, knobs, where, problems)
            continue
        good, value = _assign(target, raw, coerce, knob, where, problems)
        if good:
            target = _target_name(target)
            names[target] = value = convert(value)
            yield target, value, where


def _target(statement):
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


# -- help ------------------------------------------------------------------------------------------


def _help(script, doc, knobs):
    usage = f"usage: python {script} [recipe.py …] [--key=value …]"
    lines = [textwrap.dedent(doc or "").strip(), "", usage]
    section = None
    for knob in knobs:
        if knob.section != section:
            section = knob.section
            lines += ["", f"{section}:"] if section else [""]
        head = f"  --{knob.name}={_show(knob.default)}"
        kind = type_name(knob.type)
        lines += textwrap.wrap(
            f"{head:<34}  {kind}: {knob.comment}", 100, subsequent_indent=" " * 36
        )
    return "\n".join(lines)
