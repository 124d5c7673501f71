"""The cost of int8 and int4: measured on held-out text, printed, and too much of it refused."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import ROOT
from tiny_run import save_run

from minigpt.common.errors import UserError
from minigpt.evaluation import quantization_cost
from minigpt.evaluation.perplexity import Passage
from minigpt.evaluation.quantization_cost import held_out_passages, load_for_generation
from minigpt.inference.engine import Engine, Request
from minigpt.inference.quantization import Int8Linear
from minigpt.models import checkpoint


@pytest.fixture
def run(tmp_path, byte_tokenizer, tiny_model):
    """run(scale): a saved run whose output is `scale` times as sure of itself."""

    def make(scale=1.0, **shape):
        model = tiny_model(padded_vocab_size=320, block_size=32, tie_embeddings=False, **shape)
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        dataset = tmp_path / "data"
        dataset.mkdir(exist_ok=True)
        lines = [json.dumps({"id": str(i), "title": "", "text": f"第{i}条。"}) for i in range(30)]
        (dataset / "val.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return save_run(tmp_path / "run", model, byte_tokenizer, dataset=dataset)

    return make


def test_int8_says_what_it_costs(run, capsys):
    trained = load_for_generation(run(), "cpu", "int8", "int_mm")
    err = capsys.readouterr().err
    assert "in int8: perplexity" in err and "%" in err and "val.jsonl" in err
    layers = [type(module) for module in trained.model.modules()]
    assert layers.count(Int8Linear) == 4 * 2 + 1 and nn.Linear not in layers
    (ticket,) = Engine(trained.model, 261).generate([Request([3, 4], 8, temperature=0)])
    assert len(ticket.ids) == 8


def test_every_script_that_generates_takes_dtype_and_kernels():
    loads = re.compile(r"\b(load_for_generation|ask_run)\(")
    scripts = [path for folder in (ROOT, ROOT / "tools") for path in folder.glob("*.py")]
    scripts = {path.name: path.read_text(encoding="utf-8") for path in scripts}
    scripts = {name: text for name, text in scripts.items() if loads.search(text)}
    assert {"sample.py", "server.py", "sample_gradio.py", "compare.py"} <= set(scripts)
    for name, text in scripts.items():
        assert re.search(r'shared="[^"]*\bdevice dtype kernels\b', text), name
        assert "settings.dtype, settings.kernels" in text, name


def test_what_costs_too_much_is_refused(run, monkeypatch):
    monkeypatch.setattr(quantization_cost, "LARGEST_COST", {"int8": -0.5, "int4": -0.5})
    with pytest.raises(UserError, match=r"dtype=int8: .*perplexity .* → .* take dtype=float32"):
        load_for_generation(run(), "cpu", "int8", "int_mm")
    if shutil.which("g++"):
        with pytest.raises(UserError, match=r"dtype=int4: .*perplexity .* → .* take dtype=int8"):
            load_for_generation(run(), "cpu", "int4", "true")


def test_a_model_that_is_not_finite_is_refused(run):
    with pytest.raises(UserError, match="dtype=int8"):
        load_for_generation(run(scale=float("nan")), "cpu", "int8", "int_mm")


def test_the_cost_is_measured_on_the_bundled_sample_where_there_is_no_dataset(run):
    folder = run()
    (folder.parent / "data" / "val.jsonl").unlink()
    name, passages = held_out_passages(checkpoint.load(folder))
    assert str(name).replace("\\", "/") == "data/sample/wiki.jsonl"
    count = sum(len(passage.ids) for passage in passages)
    assert quantization_cost.MEASURED <= count < quantization_cost.MEASURED + 1500


def test_perplexity_by_hand(tiny_model):
    """Two rows of logits stand out of 64 equal ones; positions beyond the block do not count."""
    model = tiny_model(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every logit 0: each of 64 ids is as likely
    long = Passage("", np.arange(40), 0)
    assert quantization_cost.perplexity(model, [long]) == pytest.approx(64)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.lm_head = nn.Linear(32, 64)
        model.lm_head.bias.zero_()
        model.lm_head.bias[5] = math.log(64)  # id 5: 64 of 127, all others 1 of 127
    passages = [Passage("", np.array([1, 2, 5]), 2), Passage("", np.array([5]), 0)]
    assert quantization_cost.perplexity(model, passages) == pytest.approx(127 / 64)  # of "5" alone
    passages = [Passage("", np.array([1, 2, 5]), 0)]
    assert quantization_cost.perplexity(model, passages) == pytest.approx(math.sqrt(127 * 127 / 64))


def test_of_pairs_the_answers_are_measured(tmp_path, byte_tokenizer, tiny_model):
    dataset = tmp_path / "pairs"
    dataset.mkdir()
    pair = json.dumps({"id": "1", "question": "ab", "answer": "c"})
    (dataset / "val.jsonl").write_text(f"{pair}\n{pair}\n", encoding="utf-8")
    model = tiny_model(padded_vocab_size=320)
    folder = save_run(tmp_path / "run", model, byte_tokenizer, "qa", dataset)
    _, passages = held_out_passages(checkpoint.load(folder))
    assert [(p.ids.tolist(), p.first) for p in passages] == [([97, 98, 258, 99], 3)] * 2
