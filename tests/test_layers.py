"""The architecture: imports run in one direction, and each subject has one place.

scripts  →  minigpt/  →  model.py, data_utils.py  →  config/
"""

import ast
import os
import subprocess
import sys

import pytest
from conftest import ROOT

# The packages of minigpt/ and what each may import: these, and what these may import themselves.
# `model` and `data_utils` are the modules of the top level.
PACKAGES = {
    "common": (),
    "tokenizer": ("common",),
    "data": ("tokenizer", "common"),
    "models": ("tokenizer", "common", "model"),
    "training": ("models", "data", "data_utils", "interop", "inference"),
    "inference": ("models", "common"),
    "evaluation": ("inference", "training", "data", "openai"),
    "rewards": ("evaluation", "openai"),
    "openai": ("common",),
    "serving": ("openai", "inference", "data"),
    "arena": ("openai", "inference", "evaluation", "training"),
    "interop": ("models", "tokenizer"),
    "synthesis": ("openai", "data"),
    "plotting": ("common", "training"),
}
# Of a package that may be imported, these modules alone may be.
ONLY = {("evaluation", "training"): {"losses"}, ("plotting", "training"): {"log"}}
# The page shows perplexity as the evaluations compute it, and the logs of runs.
ONLY |= {("arena", "evaluation"): {"perplexity"}, ("arena", "training"): {"log"}}
ONLY |= {("training", "interop"): {"hf_import"}}  # a run may start from a Hugging Face model
MOST_FILES = 12  # in a folder of minigpt/

ERRORS = "minigpt.common.errors"  # imports nothing, so the configurator may import it, too
LOW = ("config.configurator", "config.train_config", "model", "data_utils")
FOLDERS = ("config", "data", "sft", "tools", "bench", "findings", "minigpt")


def sources():
    """The project's modules, tests apart: dotted name → (path, syntax tree)."""
    found = {}
    paths = list(ROOT.glob("*.py"))
    for folder in FOLDERS:
        # data/ and sft/ may hold folders of the user's own; packages are in minigpt/ alone.
        every = (ROOT / folder).rglob if folder == "minigpt" else (ROOT / folder).glob
        paths += every("*.py")
    for path in sorted(paths):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


SOURCES = sources()
EMPTY = {name for name in SOURCES if name.endswith("__init__")}
RECIPES = {name for name in SOURCES if name.startswith("config.")} - set(LOW) - EMPTY
SHARED = {name for name in SOURCES if name.startswith("minigpt.")} - EMPTY
# Modules that belong to scripts: those of findings/, the study of tools/sweep.py, and the training
# steps that several benchmarks time.
FINDINGS = {name for name in SOURCES if name.startswith("findings.")} - {"findings.run"}
BESIDE = FINDINGS | {"tools.study", "bench.steps", "bench.processes", "bench.peers"}
SCRIPTS = set(SOURCES) - set(LOW) - RECIPES - SHARED - BESIDE - EMPTY


def imports(tree):
    """Every module that a file may load, wherever in it: dotted names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            # `from minigpt.data import readers` names a module, `from model import GPT` an object
            # in one.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {name: imports(tree) for name, (_, tree) in SOURCES.items()}
PROJECT_IMPORTS = {name: found & set(SOURCES) for name, found in IMPORTS.items()}


def project_imports(name):
    """The project's modules that `name` imports, by their names in SOURCES."""
    return PROJECT_IMPORTS[name]


def packages(name):
    return {module.split(".")[0] for module in IMPORTS[name]}


def reachable(name):
    """The project's modules that are loaded with `name`, itself among them."""
    found, new = set(), {name}
    while new:
        found |= new
        new = set().union(*map(project_imports, new)) - found
    return found


def test_there_is_something_to_check():
    assert {"train", "sample", "model", "minigpt.inference.engine"} <= set(SOURCES)
    assert {"train", "tools.sweep", "data.prepare", "findings.run", "bench.train"} <= SCRIPTS
    assert "minigpt.inference.engine" in SHARED and "config.cpu_small" in RECIPES


# -- minigpt/ --------------------------------------------------------------------------------------


def allowed(package):
    """All that a package may import, itself and common among it."""
    found = {package, "common"}
    for lower in PACKAGES.get(package, ()):
        found |= allowed(lower)
    return found


def part_of(name):
    """The package of a module of minigpt/; the name itself of any other one."""
    return name.split(".")[1] if name.startswith("minigpt.") else name


def is_allowed(importer, imported):
    """Whether the table lets one module of minigpt/ import another, or one of the top level."""
    here, there = part_of(importer), part_of(imported)
    only = ONLY.get((here, there))
    return there in allowed(here) and (only is None or imported.split(".")[-1] in only)


def test_minigpt_holds_packages_of_a_dozen_files_and_nothing_beside_them():
    folders = {path.name for path in (ROOT / "minigpt").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(PACKAGES)
    assert [path.name for path in (ROOT / "minigpt").glob("*.*")] == ["__init__.py"]
    for name in EMPTY:
        if not name.startswith("minigpt."):
            continue
        files = [path for path in SOURCES[name][0].parent.iterdir() if path.is_file()]
        assert len(files) - 1 <= MOST_FILES, name  # __init__.py does not count


def test_every_init_is_empty():
    """Importing one module loads no other of its package: workers must not load torch."""
    for name in EMPTY:
        assert SOURCES[name][0].read_bytes() == b"", name
    assert {f"minigpt.{package}.__init__" for package in PACKAGES} <= EMPTY


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_what_the_table_allows(package):
    found = {
        (name, lower)
        for name in SHARED
        if part_of(name) == package
        for lower in project_imports(name)
        if not is_allowed(name, lower)
    }
    assert not found


def test_the_table_runs_one_way():
    for package in PACKAGES:
        for other in allowed(package) - {package}:
            assert package not in allowed(other), f"{package} and {other} may import each other"


# -- scripts and the lower layers ------------------------------------------------------------------


def test_a_script_never_imports_a_script():
    for name in SOURCES:
        assert not project_imports(name) & SCRIPTS, name


def test_the_lower_layers_know_nothing_of_the_upper():
    lower = {
        "config.configurator": {ERRORS, "minigpt.common.types"},
        "config.train_config": set(),
        ERRORS: set(),
        "minigpt.common.types": set(),
        "model": set(),
        "minigpt.data.block_format": set(),
        "data_utils": {
            *(ERRORS, "minigpt.common.types", "minigpt.common.files"),
            "minigpt.data.block_format",
        },
    }
    for name, known in lower.items():
        assert project_imports(name) <= known, name


def test_minigpt_imports_no_module_of_a_script():
    for name in SHARED | set(LOW):
        assert not project_imports(name) & BESIDE, name


def test_only_findings_know_the_findings():
    for name in set(SOURCES) - FINDINGS - {"findings.run"}:
        assert not project_imports(name) & FINDINGS, name


def test_recipes_import_nothing():
    for name in RECIPES:
        assert not IMPORTS[name], name


def test_imports_have_no_cycles():
    for name in SOURCES:
        for lower in project_imports(name):
            assert name not in reachable(lower), f"{name} → {lower} → … → {name}"


def test_the_engine_knows_no_tokenizer():
    parts = ("engine", "request", "sampling", "kv_cache")
    parts += ("decoding.beam_search", "decoding.prompt_lookup")
    assert reachable("minigpt.inference.engine") == {
        *(f"minigpt.inference.{part}" for part in parts),
        ERRORS,
    }
    assert "model" not in reachable("minigpt.tokenizer.tokenizer")


def test_flask_and_gradio_stay_in_their_place():
    for name in SOURCES:
        serves = name.startswith("minigpt.serving.")
        shows = name == "sample_gradio" or name.startswith("minigpt.arena.ui.")
        assert "flask" not in packages(name) or serves, name
        assert "gradio" not in packages(name) or shows, name


def test_only_checkpoint_reads_or_writes_checkpoints():
    for name, (_, tree) in SOURCES.items():
        if name in ("minigpt.models.checkpoint", "minigpt.models.shapes"):  # shapes reads headers
            continue
        # Weights of other projects, in their own formats, are read and written by these.
        files = "minigpt.interop.weight_files"
        foreign = name in (files, "minigpt.interop.hf_export", "minigpt.interop.peft")
        assert foreign or "safetensors" not in packages(name), name
        if name == files:  # it reads pytorch_model.bin
            continue
        assert not IMPORTS[name] & {"torch.load", "torch.save"}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert f"{node.value.id}.{node.attr}" not in ("torch.load", "torch.save"), name


def test_only_sampling_draws_tokens():
    for name, (_, tree) in SOURCES.items():
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        # Tokens, and bootstrap samples.
        draws = name in ("minigpt.inference.sampling", "minigpt.arena.ratings")
        assert not attributes & {"multinomial", "exponential_"} or draws, name


def test_only_the_configurator_reads_configuration():
    for name in SOURCES:
        if name in ("config.configurator", "quickstart"):  # quickstart runs before all is there
            continue
        assert not packages(name) & {"argparse", "optparse", "getopt", "click"}, name
        assert "config.train_config" not in IMPORTS[name], name  # it holds defaults, not values


@pytest.mark.skipif("quickstart" not in SOURCES, reason="quickstart.py is not written yet")
def test_quickstart_needs_the_standard_library_alone():
    assert packages("quickstart") <= set(sys.stdlib_module_names)


# -- scripts in folders ----------------------------------------------------------------------------

FOLDERS_OF_SCRIPTS = ("data.", "sft.", "tools.", "bench.", "findings.")
NESTED = sorted(name for name in SCRIPTS if name.startswith(FOLDERS_OF_SCRIPTS))


def bootstrap_of(name):
    """(the line by which a script in a folder finds the project, its number)."""
    for node in SOURCES[name][1].body:
        if "sys.path" in ast.unparse(node):
            return ast.unparse(node), node.lineno
    return None, 0


@pytest.mark.parametrize("name", NESTED)
def test_scripts_in_folders_begin_with_the_one_bootstrap(name):
    line, place = bootstrap_of(name)
    if not name.startswith("bench."):  # a bench may keep the folder's name for its own use
        assert line == "sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))"
    for node in ast.walk(SOURCES[name][1]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = imports(ast.Module([node], []))
            assert node.lineno > place or not modules & set(SOURCES), f"{name}:{node.lineno}"


@pytest.mark.parametrize("folder", ["data", "sft"])
def test_a_script_runs_from_any_folder(folder, tmp_path):
    """Two that load no torch: the test above holds all the others to the same lines."""
    name = next(name for name in NESTED if name.startswith(f"{folder}."))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(SOURCES[name][0]), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == "", f"{name}: {done.stderr}"
    assert "usage: python " in done.stdout
    assert not list(tmp_path.iterdir())
