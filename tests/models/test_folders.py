"""Which folders are runs, without PyTorch."""

import json
import os
import shutil

import pytest
from tiny_run import save_scripted_run

from minigpt.common.errors import UserError
from minigpt.models.folders import find_runs, prompt_format

THEIRS = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


@pytest.fixture
def out(tmp_path, byte_tokenizer):
    """Two runs, the older one called "new"."""
    out = tmp_path / "out"
    save_scripted_run(out / "new", byte_tokenizer, "甲")
    save_scripted_run(out / "old", byte_tokenizer, "乙")
    os.utime(out / "new" / "config.json", (1, 1))
    return out


def write_config(folder, text):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)


def test_runs_are_found_the_newest_first_and_other_models_are_named(out):
    write_config(out / "theirs", json.dumps(THEIRS))
    write_config(out / "list", "[1]")
    write_config(out / "torn", "{")
    write_config(out / "later", json.dumps({"format": 99, "prompt_format": "qa"}))
    write_config(out / "other", json.dumps({"name": "a config.json of something else"}))
    (out / "logs").mkdir()
    (out / "arena.sqlite").write_text("")
    runs, problems = find_runs(out)
    assert [run.name for run in runs] == ["old", "new"]
    named = sorted(problem.split(": ")[0] for problem in problems)
    assert [os.path.basename(name.removesuffix("/config.json")) for name in named] == [
        *("later", "list", "other", "theirs", "torn")
    ]
    (theirs,) = [problem for problem in problems if "theirs" in problem]
    assert "Hugging Face" in theirs and "--init_from=hf:" in theirs
    assert not any("\n" in problem for problem in problems)


def test_a_save_that_is_not_in_its_place_yet_is_a_run(out):
    (out / "new" / ".staged").mkdir()
    shutil.move(out / "new" / "config.json", out / "new" / ".staged" / "config.json")
    assert {run.name for run in find_runs(out)[0]} == {"old", "new"}
    assert prompt_format(out / "new") is None


def test_the_prompt_format_of_a_folder(out):
    assert prompt_format(out / "new") == "qa"
    for folder in (out, out / "nothing"):
        with pytest.raises(UserError, match="no trained run here"):
            prompt_format(folder)
    assert find_runs(out / "nothing") == ([], [])
