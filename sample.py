"""Generate text with a trained run: continue a text, or answer a question.

    python sample.py --out_dir=out/pretrain --start="黄河是" --num_samples=2
    python sample.py --out_dir=out/sft --start="黄河发源于哪里？"
    python sample.py --out_dir=out/sft                    # asks at the terminal, in a loop
    python sample.py --out_dir=out/sft/best --start=FILE:prompt.txt
    python sample.py --out_dir=out/sft --start="黄河发源于哪里？" --num_beams=4

A fine-tuned run takes only the question and prints only the answer. At the terminal Ctrl-C stops an
answer; an empty line or Ctrl-D ends the program.
"""

import contextlib
import sys
import time
from pathlib import Path

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.inference.request import Request


class Settings:
    start: str = ""  # the text to continue, or the question; FILE:path reads it from a file; "":
    #                  ask at the terminal
    num_samples: int = 1  # how many texts for each start
    max_new_tokens: int = 225  # longest text, in tokens
    temperature: float = 0.1  # 0: always the most likely token; 1: the model's own distribution
    top_k: int = 20  # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the most likely tokens with this total probability; 1: all
    min_p: float = 0.0  # drop tokens below this fraction of the highest probability; 0: none
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the text are less likely
    num_beams: int = 1  # above 1: beam search, without sampling; printed when the text is complete
    length_penalty: float = 1.0  # of beam search: above 0 favours long texts, below 0 short ones
    draft_tokens: int = 0  # guess so many tokens by prompt lookup and read them in one pass: faster
    #                        where an answer quotes its question or repeats itself; 0: none
    seed: int | None = None  # the same seed gives the same text; none: a new one every time


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype kernels", doc=__doc__, quiet=True)
    if settings.num_beams > 1:
        disable_sampling(settings)
    problems = settings.below(num_samples=1, draft_tokens=0)
    problems += request_of([0], settings).problems()
    if settings.draft_tokens > 0 and settings.num_beams > 1:
        problems.append(
            f"draft_tokens={settings.draft_tokens}: beam search (num_beams={settings.num_beams}) "
            "reads nothing ahead: leave one of them out"
        )
    if problems:
        raise UserError("\n".join(problems))
    return settings


def disable_sampling(settings):
    """Reset the knobs that beam search does not use. UserError names those that the user gave."""
    problems = []
    for name, unused in dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0).items():
        given, origin = getattr(settings, name), settings.origin(name)
        if given != unused and origin != "default":
            beams = f"num_beams={settings.num_beams}"
            problems.append(f"{origin}: {name}={given}: {beams} draws nothing: leave {name} out")
        settings.set(name, unused, "num_beams")
    if problems:
        raise UserError("\n".join(problems))


def request_of(ids, settings, number=0, **more):
    """The engine's request for sample `number`."""
    return Request(
        ids,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        seed=None if settings.seed is None else settings.seed + number,
        **more,
    )


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import ENDED_AT_ONCE
from minigpt.data.prompts import prompt_ids, stop_ids
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference.engine import Engine


def main():
    settings = read_settings()
    print(settings.describe(), file=sys.stderr)
    start = read_start(settings.start)
    trained = load_for_generation(
        settings.out_dir, settings.device, settings.dtype, settings.kernels
    )
    writer = Writer(trained, settings)
    if start:
        writer.write_all(start)
    else:
        converse(writer)


def read_start(start):
    """The text of --start: itself, or the contents of FILE:path."""
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"--start=FILE:{path}: cannot be read ({reason})") from None
    if not text:
        raise UserError(f"--start=FILE:{path}: the file is empty; expected a text to continue")
    return text


class Writer:
    """Prints a run's texts while they are generated; notes and speed go to stderr."""

    def __init__(self, trained, settings):
        self.trained, self.settings, self.tokenizer = trained, settings, trained.tokenizer
        self.engine = Engine(
            trained.model,
            self.tokenizer.n_vocab,
            n_slots=settings.num_beams,
            draft_tokens=settings.draft_tokens,
        )
        self.warned = False

    def write_all(self, start):
        """Print num_samples texts for one start, one after the other."""
        for number in range(self.settings.num_samples):
            if number:
                print("---")
            self.write(start, number)

    def write(self, start, number=0):
        """Print one text, whole characters only."""
        prompt_format = self.trained.prompt_format
        ids = prompt_ids(self.tokenizer, prompt_format, start)
        stops = stop_ids(self.tokenizer)
        ticket = self.engine.submit(request_of(ids, self.settings, number, stop_ids=stops))
        decoder = self.tokenizer.stream()
        began = time.perf_counter()
        if prompt_format == "plain":
            print(start, end="", flush=True)
        try:
            for token in self.engine.stream(ticket):
                print(decoder.push(token), end="", flush=True)
        finally:  # also where Ctrl-C stops it
            print(flush=True)
        self.report(ticket, time.perf_counter() - began)

    def report(self, ticket, seconds):
        """Print the speed, and notes: the text is empty, or (once) it has outgrown the block."""
        count, size = len(ticket.ids), self.engine.block_size
        drafted = ""
        if self.settings.draft_tokens:
            drafted = f", {ticket.n_accepted} of {ticket.n_drafted} drafted tokens kept"
        print(f"[{count} tokens, {count / seconds:.0f} tokens/s{drafted}]", file=sys.stderr)
        if not count and ticket.finish_reason == "stop":
            print(f"note: {ENDED_AT_ONCE}", file=sys.stderr)
        if ticket.rolled and not self.warned:
            self.warned = True
            print(
                f"note: the text outgrew the {size} tokens that this model sees: whenever they are "
                f"full, only the last {size // 2} are kept",
                file=sys.stderr,
            )


def converse(writer):
    """Read starts from the terminal and answer them, until an empty line or the end of input."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (the arrow keys then edit and recall lines)
        what = "a question" if writer.trained.prompt_format != "plain" else "a text to continue"
        print(f"{what}, then Enter; an empty line ends the program", file=sys.stderr)
    while True:
        try:
            start = input("> " if terminal else "").strip()
        except EOFError:
            if terminal:
                print()  # the shell's prompt starts on a new line
            start = ""
        except UnicodeDecodeError as error:
            raise UserError(f"the input is not {error.encoding}: convert it first") from None
        if not start:
            return
        try:
            writer.write_all(start)
        except KeyboardInterrupt:
            print("[stopped]", file=sys.stderr)


if __name__ == "__main__":
    run(main)
