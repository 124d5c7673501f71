"""Speed of generation, compared with other programs in the same run.

    python bench/decode.py                       # GPT-2's 124M shape, random weights
    pip install transformers ninja               # to compare with, and to build our kernels
    pip install llama-cpp-python gguf            # to compare with llama.cpp, too

All continue the same 32 ids greedily by --tokens tokens. Ours generates for 1, 4, 8 and 16 readers
at the same time, in float32, int8 and int4, by each backend of this machine
(inference/backends.py), and so does llama.cpp; transformers' generate() for one. The loop without a
cache computes the whole text again for each token (timed at every 16th). Rounds alternate; medians
are shown, then the ratios that are our goals. The bound is memory bandwidth: a token of one reader
reads every weight once, so tokens per second cannot exceed bandwidth ÷ bytes of weights. The
bandwidth is the best that reading a large array reached in this run.
"""

import contextlib
import copy
import ctypes
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

PROMPT = 32


class Settings:
    tokens: int = 64  # generated for each reader
    streams: str = "1,4,8,16"  # numbers of readers at the same time
    rounds: int = 3  # of all cases, alternating
    threads: int = 0  # of the processor; 0: as many as PyTorch takes
    only: str = ""  # time the cases whose names contain one of these words, comma-separated
    kernels: bool = True  # also time ours with the C++ kernels
    isa: Literal["native", "avx2"] = "native"  # avx2: ours, PyTorch, oneDNN and FBGEMM compute as
    #          on a processor with AVX2 alone; llama.cpp does so if it has been built for one
    n_layer: int = 12  # shape of the model
    n_head: int = 12
    n_embd: int = 768
    n_rows: int = 50304  # vocabulary


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds
    if read_settings().isa == "avx2":  # PyTorch, oneDNN and MKL read these when they are loaded
        os.environ |= dict(ATEN_CPU_CAPABILITY="avx2", DNNL_MAX_CPU_ISA="AVX2")
        os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"

import torch

from bench.steps import GPT2, transformers_gpt2
from minigpt.common.report import table
from minigpt.inference.backends import LAYERS, Choice, convert, has_fbgemm
from minigpt.inference.engine import Engine, Request
from minigpt.inference.kernels import build
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    problems = settings.below(rounds=1, tokens=2, threads=0)
    if settings.tokens + PROMPT > 1024:
        problems.append(f"tokens={settings.tokens}: expected at most {1024 - PROMPT}")
    if problems:
        raise UserError("\n".join(problems))
    if settings.isa == "avx2":
        force_avx2()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    shape = {name: getattr(settings, name) for name in ("n_layer", "n_head", "n_embd")}
    shape["padded_vocab_size"] = settings.n_rows
    model = GPT(GPTConfig(block_size=1024, **shape, **GPT2)).eval()
    millions = model.n_params() / 1e6
    print(f"{millions:.1f}M parameters, {torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(model, settings, pathlib.Path(folder))
        if not cases:
            raise UserError(f"only={settings.only}: no case has such a name")
        rates, bandwidth = {name: [] for name in cases}, 0.0
        for number in range(settings.rounds):
            bandwidth = max(bandwidth, best_bandwidth())
            for name, case in cases.items():
                rates[name].append(case())
                print(f"round {number + 1}: {name}: {rates[name][-1]:.1f} tokens/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    show(medians, model.n_params(), bandwidth)
    show_goals(medians)


def make_cases(model, settings, folder):
    """{name: function that returns tokens per second}."""
    tokens, streams = settings.tokens, list(map(int, settings.streams.split(",")))
    cases = {}

    def wanted(name):
        return any(word in name for word in settings.only.split(","))

    if wanted("loop without cache"):
        cases["loop without cache"] = lambda: uncached(model, tokens)
    if wanted("transformers generate()"):
        cases["transformers generate()"] = with_transformers(model, tokens)
    has_llama = importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf")
    if not has_llama:
        print("llama.cpp is left out: pip install llama-cpp-python gguf")
    for kind in ("f32", "q8_0", "q4_0") if has_llama else ():
        names = {f"llama.cpp {kind}, {n} at once": n for n in streams}
        if names := {name: n for name, n in names.items() if wanted(name)}:
            path = write_gguf(model, kind, folder / f"{kind}.gguf")
            cases |= {name: with_llama(path, n, tokens) for name, n in names.items()}
    march = "haswell" if settings.isa == "avx2" else "native"
    kernels = build(march) if settings.kernels else None
    for dtype, backend in ((kind, name) for kind in LAYERS for name in LAYERS[kind]):
        if (backend == "kernels" and not kernels) or (backend == "fbgemm" and not has_fbgemm()):
            continue
        names = {f"ours {dtype} by {backend}, {n} at once": n for n in streams}
        if names := {name: n for name, n in names.items() if wanted(name)}:
            ready = copy.deepcopy(model)
            convert(ready, Choice(dtype, backend, kernels))
            cases |= {name: with_engine(ready, n, tokens) for name, n in names.items()}
    return cases


def force_avx2():
    """Let FBGEMM compute as on a processor with AVX2 alone."""
    library = ctypes.CDLL(str(pathlib.Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    library._ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE(1)


def prompt(number=0):
    """The prompt of reader `number`; all programs continue number 0."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 50000, (PROMPT,), generator=generator).tolist()


# -- the programs ----------------------------------------------------------------------------------


@torch.inference_mode()
def uncached(model, tokens):
    """Tokens per second without a cache, timed at each 16th token."""
    seconds = []
    for length in range(PROMPT, PROMPT + tokens, 16):
        x = torch.tensor([prompt() * (length // PROMPT + 1)])[:, :length]
        start = time.perf_counter()
        model.logits(model(x)[:, -1]).argmax()
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.mean(seconds)


def with_engine(model, n_streams, tokens):
    """Ours: tokens per second of all readers, after prefill."""

    def case():
        engine = Engine(model, n_slots=n_streams)
        for number in range(n_streams):
            engine.submit(Request(prompt(number), tokens, temperature=0))
        while len(engine.step()) < n_streams:
            pass
        written, start = 0, time.perf_counter()
        while len(engine.active) == n_streams:  # until the first one ends
            written += len(engine.step())
        return written / (time.perf_counter() - start)

    return case


def with_transformers(model, tokens):
    """transformers' generate() with its cache, on its own model of this shape."""
    peer = transformers_gpt2(model.config).eval()
    x = torch.tensor([prompt()])
    words = dict(do_sample=False, attention_mask=torch.ones_like(x), pad_token_id=0)

    def timed(count):
        start = time.perf_counter()
        peer.generate(x, max_new_tokens=count, min_new_tokens=count, **words)
        return time.perf_counter() - start

    return lambda: (tokens - 1) / (timed(tokens) - timed(1))  # without prefill


def with_llama(path, n_streams, tokens):
    """llama.cpp on the GGUF file `path`: tokens per second of all readers, after prefill. As in its
    server, a step decodes one token of each reader in one batch. It samples nothing."""
    import llama_cpp as api

    def decode(context, batch, ids, positions):
        for row, (token, position, reader) in enumerate(zip(ids, *positions, strict=True)):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, reader
        batch.n_tokens = len(ids)
        if api.llama_decode(context, batch) or api.llama_get_logits(context)[0] is None:
            raise SystemExit("llama.cpp: llama_decode() failed")

    def case():
        settings, batch = api.llama_context_default_params(), api.llama_batch_init(PROMPT, 0, 1)
        settings.n_ctx, settings.n_seq_max = n_streams * 1024, n_streams
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            quiet = api.llama_log_callback(lambda *_: None)
            api.llama_log_set(quiet, None)
            model = api.llama_model_load_from_file(
                str(path).encode(), api.llama_model_default_params()
            )
            context = api.llama_init_from_model(model, settings)
        for reader in range(n_streams):
            decode(context, batch, prompt(reader), (range(PROMPT), [reader] * PROMPT))
        start = time.perf_counter()
        for number in range(PROMPT, PROMPT + tokens):
            decode(context, batch, [number] * n_streams, ([number] * n_streams, range(n_streams)))
        rate = n_streams * tokens / (time.perf_counter() - start)
        api.llama_batch_free(batch)
        api.llama_free(context)
        api.llama_model_free(model)
        return rate

    return case


def write_gguf(model, kind, path):
    """Write our model in GPT-2's shape as a GGUF file without a vocabulary; return its path."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_hidden)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.padded_vocab_size)
    parts = {"token_embd": model.wte, "output_norm": model.norm, "output": model.lm_head}
    for i, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        own = dict(attn_norm=block.attn_norm, attn_qkv=attn.qkv, attn_output=attn.proj)
        own |= dict(ffn_norm=block.mlp_norm, ffn_up=mlp.fc, ffn_down=mlp.proj)
        parts |= {f"blk.{i}.{name}": part for name, part in own.items()}
    tensors = {"position_embd.weight": model.wpe.weight}
    for name, part in parts.items():
        tensors |= {f"{name}.{kind_}": weight for kind_, weight in part.named_parameters()}
    packed = gguf.GGMLQuantizationType[kind.upper()]
    for name, weight in tensors.items():
        data = weight.detach().contiguous().numpy()
        if kind != "f32" and data.ndim == 2 and name != "position_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(data, packed), raw_dtype=packed)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -- the bound, the table --------------------------------------------------------------------------


def best_bandwidth(megabytes=512, rounds=5):
    """The best rate, in bytes per second, of reading a large array: summed, or times a vector."""
    rows = torch.ones(megabytes * 2**20 // 4 // 1024, 1024)
    vector, best = torch.ones(1024), 0.0
    for read in (rows.sum, lambda: rows @ vector, lambda: vector @ rows.view(1024, -1)):
        for _ in range(rounds):
            start = time.perf_counter()
            read()
            best = max(best, rows.numel() * 4 / (time.perf_counter() - start))
    return best


# Of one weight, in bytes.
SIZES = {"float32": 4, "f32": 4, "int8": 1, "q8_0": 34 / 32, "int4": 18 / 32, "q4_0": 18 / 32}
PEERS = {"float32": "f32", "int8": "q8_0", "int4": "q4_0"}  # llama.cpp's formats like ours


def show(medians, n_weights, bandwidth):
    """Print the table of bench/README.md."""
    peer, slow = medians.get("transformers generate()"), medians.get("loop without cache")
    rows = []
    for name, rate in medians.items():
        program, _, n = name.partition(", ")
        kind = next((word for word in SIZES if word in program.split()), "float32")
        alone = not n or n == "1 at once"
        share = rate * SIZES[kind] * n_weights / bandwidth
        llama = medians.get(f"llama.cpp {PEERS.get(kind, kind)}, {n or '1 at once'}")
        first = medians.get(f"{program}, 1 at once")
        rows.append(
            [
                name,
                f"{rate:.1f}",
                *(f"{rate / other:.2f}" if other else "" for other in (peer, llama, slow)),
            ]
            + [f"{rate / first:.2f}" if first and not alone else ""]
            + [f"{share:.0%}" if alone and "loop" not in name else ""]
        )
    header = ["", "tokens/s", "÷ transformers", "÷ llama.cpp", "÷ no cache", "÷ one reader"]
    print(table([*header, "of the bound"], rows))
    print(f"best bandwidth in this run {bandwidth / 1e9:.1f} GB/s")


def show_goals(medians):
    """Print the ratios that are goals, each of our fastest backend, as far as they were timed."""

    def best(kind, n):
        rates = {name: rate for name, rate in medians.items() if name.startswith(f"ours {kind} ")}
        return max(
            (rate for name, rate in rates.items() if name.endswith(f", {n} at once")), default=0
        )

    most = max((int(name.split(", ")[1].split()[0]) for name in medians if ", " in name), default=1)
    llama = {(k, n): medians.get(f"llama.cpp {k}, {n} at once") for k in SIZES for n in (1, most)}
    goals = [
        ("float32 alone ÷ llama.cpp f32", 1.0, best("float32", 1), llama["f32", 1]),
        ("int8 alone ÷ llama.cpp q8_0", 1.1, best("int8", 1), llama["q8_0", 1]),
        ("int4 alone ÷ llama.cpp q4_0", 1.0, best("int4", 1), llama["q4_0", 1]),
        ("int4 alone ÷ int8 alone", 1.0, best("int4", 1), best("int8", 1)),
        ("int8, 8 readers ÷ one", 4.0, best("int8", 8), best("int8", 1)),
        (f"int8 ÷ llama.cpp q8_0, {most} readers", 1.5, best("int8", most), llama["q8_0", most]),
    ]
    rows = [
        [name, f"≥ {goal}", f"{ours / other:.2f}"]
        for name, goal, ours, other in goals
        if ours and other
    ]
    if rows:
        print(table(["ratio", "goal", "measured"], rows))


if __name__ == "__main__":
    run(main)
