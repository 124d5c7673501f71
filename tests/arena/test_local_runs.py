"""Local runs are listed at once and loaded in the background."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import ROOT
from tiny_run import save_scripted_run

from config.configurator import configure
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import EndpointError, Endpoints
from minigpt.arena.local_runs import LocalRun

PATIENCE = 30
ASK = [{"role": "user", "content": "首都？"}]


@pytest.fixture
def script(monkeypatch, tmp_path, byte_tokenizer):
    """sample_gradio.py as a module, in a folder with two good runs and two bad ones."""
    sample_gradio = pytest.importorskip("sample_gradio")
    monkeypatch.chdir(tmp_path)
    for name, text in (("one", "北京。"), ("two", "上海。"), ("torn", "坏")):
        save_scripted_run(f"out/{name}", byte_tokenizer, text, block_size=64)
    (tmp_path / "out/torn/model.safetensors").write_bytes(b"torn")
    (tmp_path / "out/theirs").mkdir()
    (tmp_path / "out/theirs/config.json").write_text('{"model_type": "llama"}')
    return sample_gradio


def settings_of(script, *flags):
    return configure(script.Settings, shared="device dtype kernels", argv=list(flags), quiet=True)


def test_runs_are_listed_before_they_are_loaded(script, capfd):
    settings = settings_of(script, "--device=cpu")
    runs = script.listed_runs(settings)
    listed = {run.name: run for run in runs.values()}
    assert set(listed) == {"one", "two", "torn"} and listed["one"].prompt_format == "qa"
    assert listed["one"].probe().status == "loading" and listed["one"].is_alive
    assert "passed over: out/theirs: a Hugging Face model" in capfd.readouterr().err

    arena, hashes = Arena(Endpoints(listed.values()), None), {}
    side, texts = listed["two"].side(), []  # asked before it is loaded
    reader = threading.Thread(target=lambda: texts.extend(side.stream(ASK, {"max_tokens": 50})))
    reader.start()
    script.load_runs(settings, runs, hashes, arena)
    reader.join(PATIENCE)
    assert "".join(texts) == "上海。" and side.finish_reason == "stop"
    assert "".join(listed["one"].side().stream(ASK, {"max_tokens": 50})) == "北京。"
    assert listed["one"].probe().status == "ok" and set(hashes) == {"one", "two"}

    assert set(arena.endpoints.names()) == {"one", "two"}
    out, err = capfd.readouterr()
    assert "passed over: torn: " in err and "2 runs loaded" in out
    with pytest.raises(EndpointError, match=r"torn: .*model\.safetensors"):
        list(listed["torn"].side().stream(ASK, {}))
    assert listed["torn"].probe().status == "not loaded" and not listed["torn"].is_alive
    listed["one"].host.drain(0)


def test_a_folder_of_the_settings_that_is_no_run_is_an_error(script):
    with pytest.raises(script.UserError, match="Hugging Face"):
        script.listed_runs(settings_of(script, "--runs=out/one,out/theirs"))


def test_a_text_that_waits_for_its_model_can_be_closed():
    side = LocalRun("a").side()
    side.close()
    assert list(side.stream(ASK, {})) == [] and side.finish_reason == "cancelled"


def test_a_run_that_stops_says_so():
    run = LocalRun("a").start(SimpleNamespace(host=SimpleNamespace(draining=True)))
    assert run.probe().status == "stopping"


def test_the_page_is_imported_without_pytorch():
    program = "import sys, sample_gradio; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
