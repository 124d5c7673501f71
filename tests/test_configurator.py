"""Settings: defaults ← recipe ← --key=value, typed, checked, every mistake reported at once."""

import ast
import errno
import os
import re
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import run_here

from config import train_config
from config.configurator import GENERATION, configure
from minigpt.common.errors import ROOT, UserError, run


class Settings:
    """What a script's own knobs look like."""

    # -- the input ------
    input: str = ""  # files or folders
    workers: int = 0  # processes;
    #                   0 takes every core
    share: float | None = None  # of the texts
    mode: Literal["fast", "slow"] = "fast"  # how
    dry: bool = False  # change nothing


def resolve(*argv, own=Settings, shared="batch_size learning_rate block_size layout sample_prompt"):
    return configure(own, shared=shared, doc="A script.", argv=list(argv), quiet=True)


def mistakes(*argv, **keywords):
    """The lines of the error that these words make."""
    with pytest.raises(UserError) as caught:
        resolve(*argv, **keywords)
    return str(caught.value).splitlines()


@pytest.fixture
def recipe(tmp_path):
    """recipe("a = 1\n…", name="r.py"): the path of a recipe file with these lines."""

    def write(text, name="recipe.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


# -- resolving -------------------------------------------------------------------------------------


def test_defaults_stand_where_nothing_is_said():
    settings = resolve()
    assert settings.input == "" and settings.workers == 0 and settings.share is None
    assert settings.batch_size == train_config.batch_size
    assert settings.origin("batch_size") == "default"
    assert "default" in settings.describe()
    assert set(settings.as_dict()) == {
        *("input", "workers", "share", "mode", "dry"),
        *("batch_size", "learning_rate", "block_size", "layout", "sample_prompt"),
    }


def test_recipe_after_recipe_and_the_command_line_last(recipe):
    one = recipe('batch_size = 2\nblock_size = 64\nlayout = "pad"\n', "one.py")
    two = recipe("\nblock_size = 128\nlearning_rate = 1\n", "two.py")
    settings = resolve(one, two, "--layout=split", "--workers=3", "--workers=4")
    assert (settings.batch_size, settings.block_size, settings.layout) == (2, 128, "split")
    assert settings.learning_rate == 1.0 and type(settings.learning_rate) is float
    assert settings.workers == 4
    assert settings.origin("batch_size") == f"{one}:1"
    assert settings.origin("block_size") == f"{two}:2"
    assert settings.origin("layout") == "--layout"
    output = settings.describe()
    for words in ("batch_size", f"{one}:1", f"{two}:2", "--layout", "'split'"):
        assert words in output
    assert "sample_prompt" not in output  # a default: nothing to tell


def test_a_script_takes_from_a_recipe_what_it_reads(recipe):
    path = recipe("n_layer = 3\nworkers = 2\n")
    settings = resolve(path)
    assert settings.workers == 2 and not hasattr(settings, "n_layer")


def test_its_own_knob_goes_before_a_shared_one():
    class Settings:
        seed: str = "own"  # not the shared int

    assert resolve(own=Settings, shared="seed block_size").seed == "own"


@pytest.mark.parametrize(
    "text", ["a=b", "", "two words", "中国的 首都=北京", " =", "--seed=1", "none"]
)
def test_text_arrives_as_it_was_written(text):
    assert resolve(f"--sample_prompt={text}").sample_prompt == text


NO_HOME = st.text().filter(lambda text: "~" not in text)  # ~ is the home folder


@given(NO_HOME, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_value_survives_the_command_line(text, number, share):
    settings = resolve(f"--input={text}", f"--workers={number}", f"--share={share!r}")
    assert (settings.input, settings.workers, settings.share) == (text, number, share)


@given(NO_HOME, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_any_value_survives_a_recipe(tmp_path_factory, text, number, share, dry):
    path = tmp_path_factory.mktemp("recipe") / "r.py"
    try:
        lines = f"input = {text!r}\nworkers = {number}\nshare = {share!r}\ndry = {dry}\n"
        path.write_text(lines, encoding="utf-8")
    except UnicodeEncodeError:
        return  # a lone surrogate: no file can hold it
    settings = resolve(str(path))
    assert (settings.input, settings.workers) == (text, number)
    assert (settings.share, settings.dry) == (share, dry)


def test_bool_and_none_forms(recipe):
    for word in ("--dry", "--dry=true", "--dry=True", "--dry=TRUE"):
        assert resolve(word).dry is True
    assert resolve(recipe("dry = True\n"), "--dry=false").dry is False
    assert resolve("--share=0.5").share == 0.5
    assert resolve("--share=1").share == 1.0
    for word in ("none", "None", "NONE"):
        assert resolve(recipe("share = 0.5\n"), f"--share={word}").share is None
    assert resolve("--share=0.5", recipe("share = None\n")).share is None  # later wins
    assert resolve(recipe("share = None\n"), "--share=0.5").share == 0.5


def test_a_recipe_may_reckon_with_earlier_names(recipe):
    path = recipe(
        '"""What it is for."""\n'
        "_heads = 3\n"
        "workers = _heads * 4  # a name of its own\n"
        "batch_size = 2 * workers + 10 % 4 - 2**3 // 4\n"
        "block_size = block_size // 2  # the default, halved\n"
        "learning_rate = -(-6e-4) / 2\n"
        "share: float = 1 / 4\n"
        "input = 'a' + '/b'\n"
    )
    settings = resolve(path)
    assert settings.workers == 12
    assert settings.batch_size == 2 * 12 + 2 - 2
    assert settings.block_size == train_config.block_size // 2
    assert (settings.learning_rate, settings.share) == (3e-4, 0.25)
    assert settings.input == "a/b"
    later = recipe("batch_size = batch_size + 1\n", "later.py")  # continues from the recipe before
    assert resolve(path, later).batch_size == 25


class Several:
    servers: list[str] = ["http://here"]  # whom to ask
    keys: list[str] = []  # theirs


def several(*argv):
    """What `servers` is with these words."""
    return resolve(*argv, own=Several).servers


def test_a_knob_with_several_values(recipe):
    assert several() == Several.servers == ["http://here"]
    assert several("--servers=a, b,,c ") == ["a", "b", "c"]
    assert several("--servers=a", "--keys=k", "--servers=b,a") == ["a", "b", "a"]
    assert several("--servers=") == []
    path = recipe("servers = 'a' + ',b'\n")
    assert several(path) == ["a", "b"]
    assert several(path, "--servers=c") == ["c"]  # later wins: a flag adds to flags alone
    assert several("--servers=c", path) == several(path, path) == ["a", "b"]
    assert several("--servers=c", path, "--servers=d", "--servers=e") == ["d", "e"]
    assert Several.servers == ["http://here"]  # nobody changed the default


@given(st.lists(st.lists(st.text("ab/: ", min_size=1).map(str.strip).filter(bool)), min_size=1))
def test_commas_and_repeated_flags_are_alike(groups):
    together = [value for group in groups for value in group]
    assert several(*(f"--servers={','.join(group)}" for group in groups)) == together


def test_a_setting_with_several_values_is_printed_and_checked(recipe, capsys):
    settings = resolve("--servers=a", "--servers=b", own=Several)
    assert "servers = 'a,b'" in settings.describe() and "(--servers)" in settings.describe()
    (line,) = mistakes(recipe("servers = 3\n"), own=Several)
    assert "servers=3" in line and "expected str[,str…]" in line
    (line,) = mistakes("--servers", own=Several)
    assert "--servers=…" in line
    with pytest.raises(SystemExit):
        resolve("--help", own=Several)
    assert "--servers='http://here'" in capsys.readouterr().out


def test_several_values_may_stand_apart_from_their_flag(recipe):
    assert several("--servers", "a,b", "--keys=k", "--servers", "c") == ["a", "b", "c"]
    path = recipe("batch_size = 25\n")
    assert resolve("--servers", "a", path, own=Several).batch_size == 25
    (line,) = mistakes("--servers", "--keys=k", own=Several)
    assert line.startswith("--servers: no value")
    (line,) = mistakes("--batch_size", "25", own=Several)[:1]
    assert line.startswith("--batch_size: no value")  # of other knobs only behind =


def test_the_words_for_another_script(recipe):
    path = recipe("batch_size = 25\n")
    settings = resolve(path, "--servers", "a=1,b", "--batch_size=9", "--keys=k", own=Several)
    assert settings.words(without={"servers", "keys"}) == [path, "--batch_size=9"]
    assert settings.words() == [path, "--servers=a=1,b", "--batch_size=9", "--keys=k"]


def test_a_value_of_a_knob_is_read_without_being_taken():
    settings = resolve()
    assert settings.read("learning_rate", "3", "--grid") == 3.0
    assert settings.read("block_size", "64", "--grid") == 64 != settings.block_size
    for name, word, part in (
        ("learning_rat", "3", "unknown key learning_rat; did you mean learning_rate?"),
        ("block_size", "3.5", "block_size=3.5: expected int"),
    ):
        with pytest.raises(UserError, match=f"^--grid: {re.escape(part)}$"):
            settings.read(name, word, "--grid")


def test_train_config_itself_is_a_recipe_that_changes_nothing():
    settings = configure(shared="all", argv=[str(ROOT / "config/train_config.py")], quiet=True)
    assert settings.as_dict() == configure(shared="all", argv=[], quiet=True).as_dict()


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_in_config_is_good(path):
    if path.stem not in ("__init__", "configurator"):
        configure(shared="all", argv=[str(path)], quiet=True)


def test_every_knob_has_a_type_a_default_and_a_comment():
    settings = configure(shared="all", argv=[], quiet=True)
    for name, knob in settings._knobs.items():
        assert knob.comment, f"{name} has no comment"
        assert knob.default == getattr(train_config, name)


def test_every_setting_of_every_script_has_a_comment():
    """On the line where it ends: --help shows that one."""
    folders = [ROOT / name for name in ("", "data", "sft", "tools")]
    scripts = [path for folder in folders for path in folder.glob("*.py")]
    found = 0
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name == "Settings":
                for knob in (each for each in node.body if isinstance(each, ast.AnnAssign)):
                    line = text.splitlines()[knob.end_lineno - 1]
                    assert "  # " in line, f"{path.name}: {knob.target.id} has no comment"
                    found += 1
    assert found > 100


# -- mistakes --------------------------------------------------------------------------------------


def test_values_that_are_too_small_are_reported_together():
    class Bounds:
        limit: int | None = None  # of them
        size: int = 3  # of one
        share: float = 0.5  # kept

    settings = configure(Bounds, argv=["--size=0", "--share=-0.5"], quiet=True)
    assert settings.below(limit=1, size=1, share=0) == [
        "--size: size=0: expected at least 1",
        "--share: share=-0.5: expected at least 0",
    ]
    assert settings.below(size=0, share=-1) == []
    settings = configure(Bounds, argv=["--limit=0"], quiet=True)
    assert settings.below(limit=1) == ["--limit: limit=0: expected at least 1, or none"]


def test_unknown_key_on_the_command_line_names_the_nearest():
    (line,) = mistakes("--bach_size=3")
    assert "--bach_size" in line and "did you mean batch_size?" in line
    (line,) = mistakes("--batch-size=3")
    assert "did you mean batch_size?" in line
    (line,) = mistakes("--zzzz=3")
    assert "--help" in line


def test_unknown_key_in_a_file_names_line_and_nearest(recipe):
    path = recipe("batch_size = 3\nlearning_rat = 1\n")
    (line,) = mistakes(path)
    assert line.startswith(f"{path}:2:") and "learning_rat" in line
    assert "did you mean learning_rate?" in line


def test_a_knob_that_this_script_does_not_read():
    (line,) = mistakes("--n_layer=3")
    assert "n_layer" in line and "does not read" in line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--workers=8.5", "int"),
        ("--workers=many", "int"),
        ("--workers=", "int"),
        ("--workers=none", "int"),
        ("--workers=true", "int"),
        ("--learning_rate=fast", "float"),
        ("--learning_rate=nan", "float"),
        ("--learning_rate=inf", "float"),
        ("--share=half", "float | none"),
        ("--dry=perhaps", "bool"),
        ("--dry=", "bool"),
    ],
)
def test_wrong_type_on_the_command_line(word, expected):
    (line,) = mistakes(word)
    name, value = word[2:].split("=")
    assert f"--{name}" in line and value in line and f"expected {expected}" in line


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("workers", "8.5", "int"),
        ("workers", "True", "int"),
        ("workers", "'8'", "int"),
        ("workers", "None", "int"),
        ("learning_rate", "'fast'", "float"),
        ("learning_rate", "False", "float"),
        ("learning_rate", "1e999", "float"),
        ("dry", "1", "bool"),
        ("dry", "'true'", "bool"),
        ("input", "3", "str"),
        ("share", "'none'", "float | none"),
        ("mode", "None", "fast | slow"),
    ],
)
def test_wrong_type_in_a_file(recipe, name, value, expected):
    path = recipe(f"\n{name} = {value}\n")
    (line,) = mistakes(path)
    assert line.startswith(f"{path}:2:") and name in line and f"expected {expected}" in line


def test_wrong_choice_names_the_choices_and_the_nearest(recipe):
    (line,) = mistakes("--layout=concatt")
    assert "--layout" in line and "concatt" in line and "did you mean concat?" in line
    for choice in ("pad", "split", "concat", "packed"):
        assert choice in line
    path = recipe("mode = 'slov'\n")
    (line,) = mistakes(path)
    assert line.startswith(f"{path}:1:") and "fast | slow" in line and "did you mean slow?" in line


def test_all_mistakes_are_reported_together(recipe):
    path = recipe("workers = 8.5\nworker = 3\nimport os\nmode = 'slow'\n")
    lines = mistakes(path, "--batch_size=x", "--nothing_like_it=3", "-v", "stray")
    assert len(lines) == 7
    for words in (f"{path}:1", f"{path}:2", f"{path}:3", "--batch_size", "--nothing_like_it"):
        assert sum(words in line for line in lines) == 1
    assert any("-v" in line for line in lines) and any("stray" in line for line in lines)


def test_a_flag_without_a_value():
    (line,) = mistakes("--workers")
    assert "--workers=" in line and "int" in line


@pytest.mark.parametrize(
    "statement",
    [
        "import os",
        "from os import path",
        "workers = max(1, 2)",
        "workers = [4][0]",
        "workers = open('x')",
        "input = __file__",
        "input = f'{workers}'",
        "workers += 1",
        "workers = batch_size = 3",
        "workers, batch_size = 3, 4",
        "workers: int",
        "print('hello')",
        "if True:\n    workers = 3",
        "workers = unheard_of + 1",
        "workers = 1 / 0",
        "workers = 'a' - 1",
        "input = '%q' % 1",
        "workers = 3 if dry else 4",
        "class A: pass",
    ],
)
def test_a_recipe_holds_only_assignments_of_constants_names_and_arithmetic(recipe, statement):
    path = recipe(f"batch_size = 4\n{statement}\n")
    (line,) = mistakes(path)
    assert line.startswith(f"{path}:2:")


def test_a_recipe_that_is_no_python_or_not_there(recipe):
    path = recipe("batch_size = 4\nworkers = = 3\n")
    (line,) = mistakes(path)
    assert line.startswith(f"{path}:2:") and "not Python" in line
    (line,) = mistakes("config/cpu_smal.py")
    assert "config/cpu_smal.py" in line and "did you mean config/cpu_small.py?" in line
    (line,) = mistakes("batch_size=3")
    assert "--key=value" in line


# -- what a checkpoint fixes -----------------------------------------------------------------------


def test_inherit_takes_over_what_was_left_at_its_default():
    settings = resolve("--batch_size=4")
    settings.inherit({"block_size": 64, "batch_size": 4, "n_layer": 3}, "out/base")
    assert settings.block_size == 64 and settings.origin("block_size") == "out/base"
    assert settings.origin("batch_size") == "--batch_size" and not hasattr(settings, "n_layer")


def test_inherit_names_every_contradiction(recipe):
    path = recipe("layout = 'pad'\n")
    settings = resolve(path, "--block_size=32")
    with pytest.raises(UserError) as caught:
        settings.inherit({"block_size": 64, "layout": "split", "batch_size": 9}, "out/base")
    one, two = str(caught.value).splitlines()
    assert "--block_size" in one and "32" in one and "64" in one and "out/base" in one
    assert f"{path}:1" in two and "pad" in two and "split" in two and "out/base" in two


# -- as its user meets it --------------------------------------------------------------------------


def test_help_lists_the_knobs_that_this_script_reads(capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as caught:
            resolve("--nonsense", flag)
        assert caught.value.code == 0
        output = " ".join(capsys.readouterr().out.split())
        assert "A script." in output and "[recipe.py …] [--key=value …]" in output
        assert "the input:" in output and "--workers=0 int: processes; 0 takes every core" in output
        assert "--mode='fast' fast | slow: how" in output and "--share=none float | none" in output
        assert f"--batch_size={train_config.batch_size}" in output and "n_layer" not in output


def test_help_of_train_lists_every_setting():
    code, output, error = run_here("train.py", "--help")
    assert (code, error) == (0, "")
    for name in train_config.__annotations__:
        assert (f"--{name}=" in output) == (name not in GENERATION)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a: no such file"), 2, "a: no such file"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/log.jsonl"),
            2,
            "out/log.jsonl: is full",
        ),
    ],
)
def test_run_ends_with_one_line(capsys, error, code, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    output = capsys.readouterr().err.strip()
    assert caught.value.code == code and words in output and "\n" not in output


def test_run_lets_other_errors_through():
    def main():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run(main)


def test_bad_input_ends_with_exit_code_2_and_no_traceback(run_script, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}  # a console that knows no Chinese
    words = ["--block_size=很多", "--tokeniser=zh"]
    result = run_script("data/prepare.py", *words, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert result.stdout == ""
    one, two = result.stderr.splitlines()
    assert "--block_size" in one and "很多" in one and "expected int" in one
    assert "did you mean tokenizer?" in two
