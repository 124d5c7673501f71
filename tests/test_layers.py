"""The architecture, held to what DESIGN says: imports run one way, and each thing has one place.

scripts  →  minigpt/  →  model.py, data_utils.py, minigpt/tokenizer/tokenizer.py  →  config/
"""

import ast
import os
import subprocess
import sys

import pytest
from conftest import ROOT

LOW = (
    *("config.configurator", "config.train_config"),
    *(
        "minigpt.tokenizer.tokenizer",
        "minigpt.tokenizer.huggingface",
        "minigpt.data.block_format",
        "model",
        "data_utils",
    ),
)
FOLDERS = ("", "config", "minigpt", "data", "sft", "bench", "findings")


def sources():
    """The project's modules, tests apart: dotted name → (path, syntax tree)."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


SOURCES = sources()
RECIPES = {name for name in SOURCES if name.startswith("config.")} - set(LOW) - {"config.__init__"}
# findings/ is a script and what it alone consists of.
FINDINGS = {name for name in SOURCES if name.startswith("findings.")} - {"findings.run"}
SHARED = {name for name in SOURCES if name.startswith("minigpt.")} - set(LOW) | FINDINGS
SCRIPTS = set(SOURCES) - set(LOW) - RECIPES - SHARED - {"config.__init__"}


def imports(tree):
    """Every module that a file may load, wherever in it: dotted names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            # `from minigpt import engine` names a module, `from model import GPT` an object in one.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def project_imports(name):
    """The project's modules that `name` imports, by their names in SOURCES."""
    return imports(SOURCES[name][1]) & set(SOURCES)


def packages(name):
    return {module.split(".")[0] for module in imports(SOURCES[name][1])}


def test_there_is_something_to_check():
    assert {"train", "sample", "model", "minigpt.inference.engine", "config.cpu_small"} <= set(
        SOURCES
    )
    assert (
        "train" in SCRIPTS
        and "minigpt.inference.engine" in SHARED
        and "config.cpu_small" in RECIPES
    )


def test_a_script_never_imports_a_script():
    for name in SOURCES:
        assert not project_imports(name) & SCRIPTS, name


def test_the_lower_layers_know_nothing_of_the_upper():
    allowed = {
        "config.configurator": set(),
        "config.train_config": set(),
        "minigpt.tokenizer.tokenizer": {"config.configurator", "minigpt.tokenizer.huggingface"},
        "minigpt.tokenizer.huggingface": {"config.configurator"},
        "model": {"config.configurator"},
        "minigpt.data.block_format": set(),
        "data_utils": {
            "config.configurator",
            "minigpt.tokenizer.tokenizer",
            "minigpt.data.block_format",
        },
    }
    for name, lower in allowed.items():
        assert project_imports(name) <= lower, name


def test_only_findings_know_the_findings():
    for name in set(SOURCES) - FINDINGS - {"findings.run"}:
        assert not project_imports(name) & FINDINGS, name


def test_recipes_import_nothing():
    for name in RECIPES:
        assert not imports(SOURCES[name][1]), name


def test_no_module_imports_itself_by_a_detour():
    def visit(name, above):
        assert name not in above, " → ".join([*above, name])
        for lower in project_imports(name):
            visit(lower, [*above, name])

    for name in SOURCES:
        visit(name, [])


def test_the_engine_knows_no_tokenizer():
    def reach(name):
        return {name}.union(*(reach(lower) for lower in project_imports(name)))

    assert reach("minigpt.inference.engine") == {
        "minigpt.inference.engine",
        "model",
        "config.configurator",
    }
    assert "model" not in reach("minigpt.tokenizer.tokenizer")


def test_flask_and_gradio_stay_in_their_place():
    for name in SOURCES:
        part = name.split(".")[-1]
        assert "flask" not in packages(name) or part in ("server", "api"), name
        assert "gradio" not in packages(name) or part == "sample_gradio", name


def test_only_checkpoint_reads_or_writes_checkpoints():
    for name, (_, tree) in SOURCES.items():
        if name == "minigpt.models.checkpoint":
            continue
        # Weights of other projects, in their own formats, are read and written by these.
        foreign = name in (
            "minigpt.interop.hf_import",
            "minigpt.interop.hf_export",
            "minigpt.interop.peft",
        )
        assert foreign or "safetensors" not in packages(name), name
        assert not imports(tree) & {"torch.load", "torch.save"}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert f"{node.value.id}.{node.attr}" not in ("torch.load", "torch.save"), name


def test_only_the_engine_draws_tokens():
    for name, (_, tree) in SOURCES.items():
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        draws = name in (
            "minigpt.inference.engine",
            "minigpt.arena.ratings",
        )  # tokens; bootstrap samples
        assert "multinomial" not in attributes or draws, name


def test_only_the_configurator_reads_configuration():
    for name, (_, tree) in SOURCES.items():
        if name in (
            "config.configurator",
            "quickstart",
        ):  # quickstart runs before anything is there
            continue
        assert not packages(name) & {"argparse", "optparse", "getopt", "click"}, name
        assert "config.train_config" not in imports(tree), name  # it holds defaults, not values


@pytest.mark.skipif("quickstart" not in SOURCES, reason="quickstart.py is not written yet")
def test_quickstart_needs_the_standard_library_alone():
    assert packages("quickstart") <= set(sys.stdlib_module_names)


# -- scripts in folders ----------------------------------------------------------------------------

FOLDERS_OF_SCRIPTS = ("data.", "sft.", "bench.", "findings.")
NESTED = sorted(name for name in SCRIPTS if name.startswith(FOLDERS_OF_SCRIPTS))


def bootstrap_of(name):
    """The lines by which a script in a folder finds the project, and where they end."""
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


def test_scripts_run_from_any_folder(tmp_path):
    """All at once, for speed: each prints its help and touches nothing."""
    names = [name for name in NESTED if not name.startswith("bench.")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    running = {
        name: subprocess.Popen(
            [sys.executable, str(SOURCES[name][0]), "--help"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for name in names
    }
    for name, process in running.items():
        told, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, f"{name}: {complaint}"
        assert "usage: python " in told and complaint == "", name
    assert not list(tmp_path.iterdir())
