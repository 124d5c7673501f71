"""What beam search costs: tokens of the text a second with 1, 2, 4 and 8 beams, beside
transformers' generate(num_beams=…) in the same run.

    python bench/beams.py                              # GPT-2's 124M shape, random weights
    python bench/beams.py --n_layer=4 --n_head=4 --n_embd=256 --n_rows=8192

Everyone continues the same 32 ids by --tokens more, at temperature 0. The time of one token alone
is taken off, so that reading the prompt does not count. Rounds go through all of them in turn;
medians are shown.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch

from bench.steps import GPT2, transformers_gpt2
from config.configurator import configure
from minigpt.common.errors import UserError, run
from minigpt.common.report import table
from minigpt.inference import quantization
from minigpt.inference.engine import Engine, Request
from model import GPT, GPTConfig

PROMPT = 32


class Settings:
    tokens: int = 64  # written, the first one apart
    beams: str = "1,2,4,8"
    rounds: int = 3  # of everything, in turn
    n_layer: int = 12  # of the shape
    n_head: int = 12
    n_embd: int = 768
    n_rows: int = 50304  # vocabulary


def main():
    settings = configure(Settings, doc=__doc__)
    problems = settings.below(rounds=1)
    if not 1 <= settings.tokens <= 1023 - PROMPT:
        problems.append(f"tokens={settings.tokens}: expected 1 to {1023 - PROMPT}")
    if problems:
        raise UserError("\n".join(problems))
    torch.manual_seed(0)
    shape = {name: getattr(settings, name) for name in ("n_layer", "n_head", "n_embd")}
    shape["padded_vocab_size"] = settings.n_rows
    model = GPT(GPTConfig(block_size=1024, **shape, **GPT2)).eval()
    print(f"{model.n_params() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads")
    prompt = torch.randint(0, settings.n_rows, (PROMPT,)).tolist()
    peer = peer_of(model)
    quantization.make_ready(model)
    rates = {}
    for number in range(settings.rounds):
        for n in map(int, settings.beams.split(",")):
            for name, write in (("ours", with_engine(model)), ("transformers", with_peer(peer))):
                seconds = [timed(write, prompt, count, n) for count in (1, 1 + settings.tokens)]
                rate = settings.tokens / (seconds[1] - seconds[0])
                rates.setdefault((name, n), []).append(rate)
                print(f"round {number + 1}: {name}, num_beams={n}: {rate:.1f} tokens/s", flush=True)
    show({case: statistics.median(found) for case, found in rates.items()})


def timed(write, prompt, count, num_beams):
    """Seconds to continue `prompt` by `count` ids."""
    start = time.perf_counter()
    assert write(prompt, count, num_beams) == count
    return time.perf_counter() - start


def with_engine(model):
    def write(prompt, count, num_beams):
        request = Request(prompt, count, temperature=0, num_beams=num_beams)
        (ticket,) = Engine(model, n_slots=num_beams).generate([request])
        return len(ticket.ids)

    return write


def peer_of(model):
    """transformers' own model of this shape, its weights as random."""
    return transformers_gpt2(model.config).eval()


def with_peer(peer):
    def write(prompt, count, num_beams):
        x = torch.tensor([prompt])
        words = dict(do_sample=False, attention_mask=torch.ones_like(x), pad_token_id=0)
        return peer.generate(x, max_new_tokens=count, num_beams=num_beams, **words).size(1) - PROMPT

    return write


def show(rates):
    """The table that stands in bench/README.md."""
    rows = []
    for (name, n), rate in rates.items():
        first = rates.get((name, 1), rate)
        rows.append([f"{name}, num_beams={n}", f"{rate:.1f}", f"{rate / first:.2f}"])
    print(table(["", "tokens/s", "÷ one beam"], sorted(rows)))


if __name__ == "__main__":
    run(main)
