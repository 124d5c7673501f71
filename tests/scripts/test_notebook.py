"""docs/minigpt.ipynb, run cell by cell as Jupyter runs it, at a toy length."""

import shutil

import nbformat
import pytest
from tiny_run import write_jsonl

LINES = ["春山", "明月", "白日", "江水", "花落", "云生", "风来", "人归"]


@pytest.fixture
def project(tmp_path, root):
    """A copy of what the notebook uses, with some poems."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("config", "data/tokenizers", "minigpt", "tools"):
        shutil.copytree(root / name, tmp_path / name, ignore=ignored)
    for path in [*root.glob("*.py"), *root.glob("data/*.py")]:
        shutil.copy(path, tmp_path / path.relative_to(root))
    lines = [f"{a}{b}远" for a in LINES for b in LINES]
    poems = [
        {"author": "李白", "title": f"题{n}", "text": f"{lines[n]}，{a}。\n{lines[-n]}，{b}。"}
        for n, (a, b) in enumerate(zip(lines[3:], lines[7:], strict=False))
    ]
    write_jsonl(tmp_path / "mine.jsonl", poems)
    return tmp_path


def test_every_cell_runs(project, root):
    from nbclient import NotebookClient

    notebook = nbformat.read(root / "docs/minigpt.ipynb", as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source = (
        'REPOSITORY, POEMS, INSTALL = "", "mine.jsonl", False\n'
        "STEPS, TUNING_STEPS, REWARD_STEPS = 2, 2, 2"
    )
    # A small budget for the poems that are measured.
    (measured,) = (c for c in notebook.cells if "evaluations-poems" in c.source)
    measured.source = measured.source.replace("--number=100", "--number=2 --max_new_tokens=8")
    (rewarded,) = (c for c in notebook.cells if "reward" in c.metadata.get("tags", ()))
    small = "--batch_size=2 --grpo_group=2 --grpo_tokens=8 --eval_iters=1 --max_iters"
    rewarded.source = rewarded.source.replace("--max_iters", small)
    resources = {"metadata": {"path": str(project)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "Traceback" not in text and "expected" not in text, text
    assert "wrote data/poems/poems.jsonl" in text
    assert (project / "out/poems_sft/poems.json").is_file()
    assert (project / "out/poems_grpo/model.safetensors").is_file()
    assert "春山花▁" in text  # the window into the model
