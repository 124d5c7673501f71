"""Work on a Ray cluster of this machine: as over processes. Ray is an extra: pip install ray."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import run_here, write_jsonl

from minigpt.common.errors import UserError
from minigpt.data.formats import FORMATS
from minigpt.data.parallel import cluster
from minigpt.data.parallel.cluster import cluster_map
from minigpt.data.pipeline import PrepareOptions, prepare

FILES = ["train.bin", "train.mask", "val.bin", "val.mask", "val.jsonl"]


class Square:
    """Like that of test_parallel.py; `folder` is where a task notes that it has died once."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, task):
        if task == "mistake":
            raise UserError("line 3: no JSON")
        if task == "die" or (task == "die once" and not (self.folder / "died").exists()):
            (self.folder / "died").write_text("")
            os._exit(9)
        return task if isinstance(task, str) else task * task


@pytest.fixture
def with_ray(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray==2.60.0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "RETRIES", 1)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray starts them with 15
    # The processes of the cluster find Square in this file.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def test_without_ray_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    write_jsonl(tmp_path / "texts.jsonl", [{"text": f"第{i}天。"} for i in range(9)])
    words = [f"--input={tmp_path}/texts.jsonl", f"--dataset={tmp_path}/data", "--engine=ray"]
    code, _, err = run_here("data/prepare.py", *words)
    assert code == 2 and "--engine=ray: Ray is not installed; pip install ray==" in err
    assert "Traceback" not in err and not (tmp_path / "data").exists()


def test_a_cluster_that_is_not_there_is_named(with_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=127.0.0.1:1: Ray cannot be reached"):
        next(cluster_map(Square, "", [1]))


def test_order_errors_and_lost_tasks(with_ray, tmp_path):
    results, read = [], []

    def tasks():
        for task in [*range(9), "die once", 3, "mistake", *range(99)]:
            read.append(task)
            yield task

    with pytest.raises(UserError, match="line 3: no JSON"):
        for result in cluster_map(Square, str(tmp_path), tasks(), at_most=2):
            results.append(result)
            assert len(read) <= len(results) + 3
    assert results == [*(i * i for i in range(9)), "die once", 9]
    with pytest.raises(UserError, match="lost 2 times on the Ray cluster"):
        list(cluster_map(Square, str(tmp_path), ["die"], at_most=1))


def test_the_same_files_as_over_processes(with_ray, tmp_path):
    texts = [
        {"text": f"第{i}天，天下大势。" + "分久必合，合久必分。" * (i % 7)} for i in range(9000)
    ]
    path = write_jsonl(tmp_path / "texts.jsonl", texts)
    options = PrepareOptions(path, tmp_path / "one", FORMATS["text"], block_size=64, workers=1)
    prepare(options)
    prepare(replace(options, dataset=tmp_path / "other", engine="ray"))
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
