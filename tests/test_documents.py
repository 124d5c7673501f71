"""The documents: their commands exist, their links resolve, and both languages hold the same.

Commands are given to the configurator itself, with the script's `Settings` class and the names of
the shared settings that it reads. No script is imported, no model runs.
"""

import ast
import importlib.util
import re
import shlex
import sys
import typing
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

from config import train_config
from config.configurator import configure
from minigpt.common.errors import UserError

README_BYTES = 12_000

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README*.md", "docs/**/*.md", "bench/README*.md", "findings/README*.md")
    for path in ROOT.glob(pattern)
) + [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "sft").glob("*.md"))]
PAGES = sorted({path.name for path in ROOT.glob("docs/*/*.md")})
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "data", "sft", "tools")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
RECIPES = sorted(
    f"config/{path.name}"
    for path in (ROOT / "config").glob("*.py")
    if path.stem not in ("__init__", "configurator")
)

# Programs of others that code blocks run, and flags of others that the text names.
PROGRAMS = {"curl", "git", "lm_eval", "ollama", "pip", "ray", "source"}
OTHERS_FLAGS = {"json", "node_rank", "max_restarts", "model", "model_args", "setup", "test", "help"}
TORCHRUN = {"nproc_per_node", "max_restarts", "nnodes", "node_rank", "master_addr", "master_port"}


# -- reading documents -----------------------------------------------------------------------------


@cache
def read(document):
    return (ROOT / document).read_text(encoding="utf-8")


def code_blocks(text):
    """[(language, content)] of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text):
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text):
    """What is between backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def shell_lines(text):
    """The command lines of the fenced blocks, as lists of words, without comments."""
    for language, content in code_blocks(text):
        if language not in ("", "bash"):
            continue
        for line in re.sub(r"\\\n\s*", " ", content).splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)  # a variable for this command, or of the shell
            if words:
                yield language, words


def commands(text):
    """The commands that run scripts of the project, each as (script, words): those of fenced
    blocks, and those between backticks in the prose."""
    lines = [words for _, words in shell_lines(text)]
    lines += [span.split() for span in spans(text) if span.startswith(("python ", "torchrun "))]
    for words in lines:
        if words[0] == "torchrun":
            words = words[1:]
            while words and words[0].startswith("--"):
                flag = words.pop(0)[2:].partition("=")[0]
                assert flag in TORCHRUN, f"torchrun --{flag}"
        elif words[0] == "python":
            words = words[1:]
        else:
            continue
        if words and words[0] not in ("-c", "-m", "SCRIPT"):
            # `…` and $VARIABLES stand for more words.
            yield words[0], tuple(w for w in words[1:] if w != "…" and not w.startswith("$"))


def every_command():
    """Each different command of all documents, with the documents that have it."""
    found = {}
    for document in DOCUMENTS:
        for command in commands(read(document)):
            found.setdefault(command, []).append(document)
    return found


# -- settings of a script --------------------------------------------------------------------------


@cache
def settings_of(script):
    """(Settings class or None, shared names) of a script, from its source alone."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    own = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Settings"]
    calls = [
        {keyword.arg: keyword.value for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "configure"
    ]
    call = next(call for call in calls if "doc" in call)
    return (own[0] if own else None), _text(call.get("shared"), tree)


def _text(node, tree):
    """The text of an expression: a literal, a sum, or a name that the script gives a text."""
    if node is None:
        return ""
    if isinstance(node, ast.BinOp):
        return _text(node.left, tree) + _text(node.right, tree)
    if isinstance(node, ast.Name):
        (node,) = (
            statement.value
            for statement in ast.walk(tree)
            if isinstance(statement, ast.Assign)
            and getattr(statement.targets[0], "id", "") == node.id
        )
    return ast.literal_eval(node)


@pytest.fixture(scope="module")
def load_settings(tmp_path_factory):
    """load_settings(script): (its Settings as a real class, shared names). The class alone is
    written into a module of its own, because the configurator reads its source."""
    folder, loaded = tmp_path_factory.mktemp("settings"), {}

    def load(script):
        if script not in loaded:
            node, shared = settings_of(script)
            own = None
            if node:
                path = folder / f"settings_{len(loaded)}.py"
                path.write_text("from typing import Literal\n\n" + _without_constants(node))
                try:
                    own = _imported(path).Settings
                except NameError:  # a type that is computed, as the choices of --format
                    own = _imported(ROOT / script).Settings
            loaded[script] = own, shared
        return loaded[script]

    return load


def _imported(path):
    """The module of a file."""
    spec = importlib.util.spec_from_file_location(f"document_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _without_constants(node):
    """The source of a class of settings; a default that is no literal becomes None."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            try:
                ast.literal_eval(statement.value)
            except ValueError:
                statement.value = ast.Constant(None)
    return ast.unparse(node)


@cache
def all_settings():
    """The names of all settings of all scripts."""
    names = set(train_config.__annotations__)
    for script in [*SCRIPTS, *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("bench/*.py"))]:
        for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == "Settings":
                names |= {s.target.id for s in node.body if isinstance(s, ast.AnnAssign)}
    return names | {"if_trav"}


def problem_of(script, words, load_settings):
    """Why a command would be refused, or None."""
    if not (ROOT / script).is_file():
        return "no such script"
    if script == "quickstart.py":
        source = (ROOT / script).read_text(encoding="utf-8")
        return next((word for word in words if f'"{word}"' not in source), None)
    own, shared = load_settings(script)
    words = [word for word in words if word != "--help"]
    if script == "sft/sft_report.py":  # takes one file by its place
        words = [word for word in words if not word.endswith(".jsonl")]
    if script == "findings/run.py":  # takes names of findings
        names = [word for word in words if not word.startswith("-")]
        words = [word for word in words if word not in names]
        known = read("findings/README.md")
        if unknown := [name for name in names if f"`{name}`" not in known]:
            return f"unknown findings {unknown}"
    try:
        configure(own, shared=shared, argv=words, quiet=True)
    except UserError as error:
        return str(error)
    return None


# -- commands --------------------------------------------------------------------------------------


def test_every_command_is_one_that_its_script_takes(load_settings, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from here
    found = every_command()
    problems = [
        f"{', '.join(sorted(set(places)))}: {script} {' '.join(words)}: {problem}"
        for (script, words), places in found.items()
        if (problem := problem_of(script, words, load_settings))
    ]
    assert not problems, "\n".join(problems)
    assert len(found) > 100


@pytest.mark.parametrize(
    "line, problem",
    [
        ("python trian.py config/cpu_small.py", "no such script"),
        ("python train.py config/cpu_smal.py", "no such recipe"),
        ("python train.py --batch_sise=8", "unknown key"),
        ("python data/prepare.py --layout=padd", "expected"),
        ("python data/prepare.py --n_layer=4", "does not read"),
        ("torchrun --nproc_per_node=2 train.py --seed=x", "expected int"),
        ("python findings/run.py no_such_finding", "unknown findings"),
        ("python quickstart.py --tset", "--tset"),
        ("OMP_NUM_THREADS=1 python bench/lora.py \\\n    --rouns=2", "unknown key"),
    ],
)
def test_a_wrong_command_is_found(line, problem, load_settings, monkeypatch):
    monkeypatch.chdir(ROOT)
    ((script, words),) = commands(f"```bash\n{line}   # why\n```\n")
    assert problem in problem_of(script, words, load_settings)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_run_known_programs(document):
    text = read(document)
    allowed = {"", "bash", "json", "csv"}
    assert {language for language, _ in code_blocks(text)} <= allowed
    for language, words in shell_lines(text):
        known = words[0] in {"python", "torchrun", *PROGRAMS}
        assert known or language != "bash", f"{document}: {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_and_settings_that_the_text_names_exist(document):
    flags = {
        word[2:].partition("=")[0]
        for span in spans(read(document))
        if span.startswith("--")
        for word in span.split()
        if word.startswith("--")
    }
    unknown = flags - all_settings() - OTHERS_FLAGS
    # Tables of settings: the first column of those whose header says so.
    for head, rows in re.findall(r"^(\|.*\|)\n\|[-|: ]+\|\n((?:\|.*\n)+)", read(document), re.M):
        if head.split("|")[1].strip() in ("setting", "参数"):
            named = {name for row in rows.splitlines() for name in spans(row.split("|")[1])}
            unknown |= named - all_settings()
    if document.startswith(("docs/", "README")):
        assert not unknown


# -- links and files -------------------------------------------------------------------------------


@cache
def anchors(document):
    """The anchors that GitHub makes of a document's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(read(document)), re.M):
        words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(words.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document):
    folder = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(read(document))):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (folder / name).resolve() if name else ROOT / document
        path = target.relative_to(ROOT).as_posix()
        assert target.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_the_text_names_exist(document):
    folders = ("minigpt", "config", "tools", "tests", "findings", "bench", "data", "sft", "docs")
    for span in spans(read(document)):
        path = span.split()[0].partition("#")[0]
        whole = re.fullmatch(rf"({'|'.join(folders)})/[\w./-]*", path) and "*" not in path
        written = re.fullmatch(r"(data|sft)/\w+(/|\.jsonl|/.*\.jsonl)?", path)  # a user's own
        if whole and not written:
            assert (ROOT / path).exists(), f"{document}: {path}"
    if document.startswith("docs/"):
        for span in spans(read(document)):
            if re.fullmatch(r"[\w-]+\.py", span) and span not in ("SCRIPT.py", "prepare_sft.py"):
                assert (ROOT / span).exists(), f"{document}: {span}"


WALK = ["docs/en/the-code-in-an-hour.md", "docs/zh/the-code-in-an-hour.md"]


@pytest.mark.parametrize("document", WALK)
def test_the_walk_names_what_the_files_define(document):
    """Rows `file` | `names` | …: each name is a class, function or assignment of that file."""
    rows = re.findall(r"^\| (`[\w./]+\.py`) \| ([^|]*) \|", read(document), re.M)
    assert len(rows) > 25
    for file, names in rows:
        path = file.strip("`")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {getattr(node, "name", None) for node in tree.body}
        defined |= {
            getattr(target, "id", None)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
        }
        assert set(spans(names)) <= defined, f"{document}: {path}"


def test_everything_has_its_place_in_the_documents():
    for language in ("en", "zh"):
        text = "\n".join(read(f"docs/{language}/{page}") for page in PAGES if page != "security.md")
        missing = [name for name in [*SCRIPTS, *RECIPES] if f"`{name}`" not in text]
        assert not missing, f"docs/{language} does not name {missing}"
        index = read(f"docs/{language}/index.md")
        unlisted = [page for page in PAGES if page != "index.md" and f"({page})" not in index]
        assert not unlisted, f"docs/{language}/index.md does not list {unlisted}"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "script, setting, page",
    [
        ("data/prepare_sft.py", "format", "fine-tuning.md"),
        ("train.py", "layout", "your-data.md"),
        ("train.py", "schedule", "pretraining.md"),
        ("train.py", "optimizer", "pretraining.md"),
        ("tools/export.py", "dtype", "export-and-import.md"),
        ("data/train_tokenizer.py", "pattern", "tokenizers.md"),
    ],
)
def test_a_page_names_all_choices_of_a_setting(language, script, setting, page, load_settings):
    own, _ = load_settings(script)
    choices = typing.get_args(typing.get_type_hints(own or train_config)[setting])
    assert len(choices) > 1
    missing = [choice for choice in choices if f"`{choice}`" not in read(f"docs/{language}/{page}")]
    assert not missing, f"docs/{language}/{page} does not name --{setting}={missing}"


# -- two languages ---------------------------------------------------------------------------------


def test_both_languages_have_the_same_pages():
    for page in PAGES:
        for language in ("en", "zh"):
            assert (ROOT / f"docs/{language}/{page}").is_file(), f"{language}/{page}"


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_both_languages_have_the_same_commands_pictures_and_structure(page):
    english, chinese = (
        ("README.md", "README.zh.md")
        if page == "README.md"
        else (f"docs/en/{page}", f"docs/zh/{page}")
    )
    english, chinese = read(english), read(chinese)

    def outline(text):
        return [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.M)]

    def pictures(text):
        return re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)

    def runs(text):
        return [words for language, words in shell_lines(text) if language]

    def rows(text):
        return len(re.findall(r"^\|", prose(text), re.M))

    assert runs(chinese) == runs(english)
    assert pictures(chinese) == pictures(english)
    assert outline(chinese) == outline(english)
    assert rows(chinese) == rows(english)


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readmes_are_short(readme):
    assert len(Path(ROOT, readme).read_bytes()) <= README_BYTES
