"""Exports to GGUF, as llama.cpp reads them: ids, logits, greedy text, answers."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_hf_export import (
    AWKWARD,
    SHAPES,
    conversations,
    imported_tokenizer,
    texts,
    tokenizer_called,
)
from tiny_run import run_here, save_run, save_scripted_run

from minigpt.common.errors import UserError
from minigpt.data.prompts import FORMATS, chat_ids
from minigpt.inference.engine import Engine, Request
from minigpt.interop import gguf_export
from minigpt.models import checkpoint
from minigpt.tokenizer.tokenizer import PATTERNS, SPECIAL_NAMES, Tokenizer, load_tokenizer

pytest.importorskip("gguf", reason="pip install gguf")
llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")

F32 = 0  # ggml's number of it


def opened(path, **words):
    """llama.cpp with the file: one thread, a cache that rounds nothing."""
    size = dict(n_ctx=256, n_threads=1, n_threads_batch=1, type_k=F32, type_v=F32)
    return llama_cpp.Llama(str(path), verbose=False, logits_all=True, **size | words)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model):
    """exported(shape, kind, prompt format): (Checkpoint, path of the file), made once."""

    @functools.cache
    def make(shape, kind="float32", prompt_format="chat"):
        tokenizer = load_tokenizer("zh")
        folder = tmp_path_factory.mktemp("run")
        model = tiny_model(
            padded_vocab_size=tokenizer.padded_vocab_size, block_size=256, **SHAPES[shape]
        )
        trained = checkpoint.load(save_run(folder, model, tokenizer, prompt_format))
        gguf_export.write_gguf(folder / "it.gguf", trained, kind)
        return trained, folder / "it.gguf"

    return make


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory, tiny_model):
    """vocabulary(name): llama.cpp's reading of that tokenizer, made once."""

    @functools.cache
    def make(name):
        tokenizer, folder = tokenizer_called(name), tmp_path_factory.mktemp("vocabulary")
        model = tiny_model(
            padded_vocab_size=tokenizer.padded_vocab_size, n_layer=1, n_head=1, n_embd=2
        )
        trained = checkpoint.Checkpoint(folder, model, tokenizer, {"prompt_format": "chat"})
        gguf_export.write_gguf(folder / "it.gguf", trained, "float32")
        return opened(folder / "it.gguf", vocab_only=True)

    yield make
    make.cache_clear()


def ids_of(llama, text, special=False):
    return llama.tokenize(text.encode(), add_bos=False, special=special)


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zh", "gpt2", *PATTERNS])
@given(text=texts)
def test_ids(vocabulary, name, text):
    assert ids_of(vocabulary(name), text) == tokenizer_called(name).encode(text)


@pytest.mark.parametrize("name", ["zh", "gpt2"])
def test_ids_of_real_text(shared_data, vocabulary, name):
    files = [path for path in sorted(shared_data.rglob("*")) if path.suffix in (".txt", ".jsonl")]
    for path in files:
        with open(path, encoding="utf-8") as file:
            text = file.read(10_000)
        assert ids_of(vocabulary(name), text) == tokenizer_called(name).encode(text), path


def test_special_ids(vocabulary):
    llama, ours = vocabulary("zh"), tokenizer_called("zh")
    spelled = "<|endoftext|><|pad|><|answer|><|im_start|><|im_end|>"
    assert ids_of(llama, spelled, special=True) == [ours.special[name] for name in SPECIAL_NAMES]
    assert (llama.token_eos(), llama.token_bos()) == (ours.special["IM_END"], ours.eot)
    # Nothing is put before a text, even where a reader would like to.
    assert llama.tokenize("中国".encode(), add_bos=True) == ours.encode("中国")
    assert llama.detokenize(ours.encode(AWKWARD[0])).decode() == AWKWARD[0]


def test_ids_of_an_imported_vocabulary(tmp_path, tiny_model):
    """Its ids do not follow its ranks; and its model has more rows than it needs."""
    ours = imported_tokenizer()
    model = tiny_model(padded_vocab_size=ours.padded_vocab_size + 64, n_layer=1, n_head=1, n_embd=2)
    trained = checkpoint.Checkpoint(tmp_path, model, ours, {"prompt_format": "chat"})
    gguf_export.write_gguf(tmp_path / "it.gguf", trained, "float32")
    llama = opened(tmp_path / "it.gguf")
    for text in ["think", *AWKWARD]:
        assert ids_of(llama, ours.normalize(text)) == ours.encode(text)


# -- the network -----------------------------------------------------------------------------------


def logits_of(trained, ids):
    with torch.no_grad():
        return trained.model.logits(trained.model(torch.tensor([ids])))[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits(exported, shape):
    trained, path = exported(shape)
    llama = opened(path)
    ids = trained.tokenizer.encode("中国的首都是北京。1998年，GDP增长7.8%")
    llama.eval(ids)
    ours, theirs = logits_of(trained, ids), np.array(llama.scores[: len(ids)])
    assert ours.std() > 0.1
    # llama.cpp looks GELU up in a table of float16.
    atol = 2e-3 if shape.startswith("gpt2") else 1e-4
    np.testing.assert_allclose(theirs, ours, atol=atol, rtol=0)


@pytest.mark.parametrize("shape", ["gpt2 without biases, untied", "qwen3, grouped, untied"])
def test_greedy_text(exported, shape):
    trained, path = exported(shape)
    ids = trained.tokenizer.encode("中国的首都是")
    engine = Engine(trained.model, n_slots=1)
    ours = list(engine.stream(engine.submit(Request(ids, 40, temperature=0))))
    theirs = opened(path).generate(ids, temp=0, repeat_penalty=1.0)
    assert [next(theirs) for _ in ours] == ours and len(set(ours)) > 3


@pytest.mark.parametrize(
    ("kind", "share", "error"),
    [("float16", 0.5, 2e-2), ("bfloat16", 0.5, 5e-2), ("q8_0", 34 / 128, 0.2)],
)
@pytest.mark.parametrize("shape", ["gpt2", "qwen3"])
def test_smaller_numbers(exported, shape, kind, share, error):
    trained, whole = exported(shape)
    _, path = exported(shape, kind)
    named = trained.model.named_parameters()
    matrices = [w for name, w in named if w.dim() == 2 and name != "wpe.weight"]  # it stays float32
    saved = whole.stat().st_size - path.stat().st_size
    assert saved == pytest.approx((1 - share) * sum(4 * w.numel() for w in matrices), rel=0.01)
    llama = opened(path)
    ids = trained.tokenizer.encode("中国的首都是北京。")
    llama.eval(ids)
    ours, theirs = logits_of(trained, ids), np.array(llama.scores[: len(ids)])
    assert np.abs(theirs - ours).max() < error * ours.std()


def test_a_row_that_q8_0_cannot_cut_is_float16(tmp_path, tiny_model):
    tokenizer = tokenizer_called("gpt-2")
    model = tiny_model(padded_vocab_size=tokenizer.padded_vocab_size, n_embd=40)
    trained = checkpoint.Checkpoint(tmp_path, model, tokenizer, {"prompt_format": "plain"})
    gguf_export.write_gguf(tmp_path / "it.gguf", trained, "q8_0")
    llama = opened(tmp_path / "it.gguf")
    llama.eval([1, 2, 3])
    assert np.abs(llama.scores[:3] - logits_of(trained, [1, 2, 3])).max() < 0.1


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_format", FORMATS)
@settings(max_examples=30)
@given(messages=conversations)
def test_prompts(exported, prompt_format, messages):
    trained, path = exported("qwen3", prompt_format=prompt_format)
    llama = vocabulary_of(path)
    template = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        llama.metadata["tokenizer.chat_template"], eos_token="", bos_token=""
    )
    prompt = template(messages=[{"role": r, "content": c} for r, c in messages]).prompt
    expected = chat_ids(trained.tokenizer, prompt_format, messages, 10_000)
    assert ids_of(llama, prompt, special=True) == expected


@functools.cache
def vocabulary_of(path):
    return opened(path, vocab_only=True)


@pytest.mark.parametrize(
    ("prompt_format", "question"), [("qa", "首都是哪里？"), ("plain", "法国的首都是。")]
)
def test_an_answer(tmp_path, prompt_format, question):
    """Through llama.cpp's own chat: template, ids, network and the end."""
    run = save_scripted_run(tmp_path / "run", load_tokenizer("zh"), "巴黎", prompt_format)
    path = tmp_path / "it.gguf"
    code, output, _ = run_here(
        "tools/export.py", f"--out_dir={run}", "--format=gguf", f"--output={path}"
    )
    assert code == 0 and f"{path.stat().st_size:,} bytes  {path}" in output
    assert "note: Ollama has an engine of its own for qwen3" in output
    answer = opened(path).create_chat_completion(
        [{"role": "user", "content": question}], temperature=0, max_tokens=20
    )
    assert answer["choices"][0]["message"]["content"] == "巴黎"
    assert answer["choices"][0]["finish_reason"] == "stop"


MODELFILES = {
    "chat": "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n",
    "qa": "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}"
    "{{ .Content }}<|answer|>{{ end }}{{ end }}",
    "plain": "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}"
    "{{ .Content }}{{ end }}{{ end }}",
}


@pytest.mark.parametrize("prompt_format", MODELFILES)
def test_modelfile(exported, prompt_format):
    trained, path = exported("qwen3", prompt_format=prompt_format)
    lines = gguf_export.modelfile(path, trained)
    assert lines.startswith(f'FROM ./it.gguf\nTEMPLATE """{MODELFILES[prompt_format]}"""\n')
    assert "PARAMETER num_ctx 256\n" in lines


# -- the file --------------------------------------------------------------------------------------


def test_only_an_export_is_replaced(tmp_path):
    run = save_scripted_run(tmp_path / "small", load_tokenizer("zh"), "巴黎")
    words = f"--out_dir={run}", "--format=gguf", "--dtype=q8_0"
    for _ in range(2):
        code, output, _ = run_here("tools/export.py", *words)
        assert code == 0 and str(run / "small-q8_0.gguf") in output
    (run / "small-q8_0.gguf").write_bytes(b"GGUF of somebody else")
    code, _, complaint = run_here("tools/export.py", *words)
    assert code == 2 and "is another file; only an earlier export is replaced" in complaint
    (run / "small-q8_0.gguf").unlink()
    (run / "small-q8_0.gguf").mkdir()
    code, _, complaint = run_here("tools/export.py", *words)
    assert code == 2 and "is a folder, but a GGUF export is a file" in complaint


def test_without_the_package(monkeypatch, tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path, byte_tokenizer, "Paris")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    code, _, complaint = run_here("tools/export.py", f"--out_dir={run}", "--format=gguf")
    assert (code, complaint) == (2, "--format=gguf needs the package gguf: pip install gguf\n")


def test_a_pattern_that_llama_cpp_does_not_know(tmp_path, tiny_model):
    ranks = {bytes([byte]): byte for byte in range(256)}
    special = {name: 256 + i for i, name in enumerate(SPECIAL_NAMES)}
    tokenizer = Tokenizer("other", ranks, r"\S+|\s+", special)
    trained = checkpoint.Checkpoint(tmp_path, tiny_model(padded_vocab_size=320), tokenizer, {})
    with pytest.raises(UserError, match=r"does not know .*smollm.*use --format=hf"):
        gguf_export.write_gguf(tmp_path / "it.gguf", trained)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_of_bytes(tmp_path, tiny_model, byte_tokenizer):
    trained = checkpoint.Checkpoint(tmp_path, tiny_model(padded_vocab_size=320), byte_tokenizer, {})
    with pytest.raises(UserError, match=r"no merges.*use --format=hf"):
        gguf_export.write_gguf(tmp_path / "it.gguf", trained)
