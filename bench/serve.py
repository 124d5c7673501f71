"""Load test of server.py: tokens per second, latency, errors, memory.

    python quickstart.py                                        # makes out/quickstart_sft
    python bench/serve.py --out_dir=out/quickstart_sft          # 1, 8 and 32 readers, 60 s each
    python bench/serve.py --out_dir=out/quickstart_sft --requests=10000     # only memory

Starts server.py. Each reader asks a question of the bundled sample by POST /v1/chat/completions,
streamed, reads the whole answer and asks the next question. The readers are one process on the same
machine. "First token" is the time from the request to its first text, "between tokens" the time
between two chunks of text.
"""

import asyncio
import itertools
import json
import pathlib
import random
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import preflight, run


class Settings:
    out_dir: str = "out/quickstart_sft"  # the run to serve
    input: str = "sft/sft_saves.jsonl"  # pairs whose questions are asked
    readers: str = "1,8,32"  # numbers of readers at the same time
    seconds: float = 60.0  # for each number of readers
    requests: int = 0  # more than 0: send so many requests from 8 readers, and measure memory
    temperature: float = 1.0  # of every request
    max_tokens: int = 128
    slots: int = 32  # of the server
    dtype: str = "auto"  # of the server
    threads: int = 0  # of the server; 0: its default


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from bench.processes import percentile, resident_memory, running_server
from minigpt.common.report import table
from minigpt.evaluation.examples import read_pairs


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    questions = [pair.question for pair in read_pairs(settings.input)]
    random.Random(0).shuffle(questions)
    names = ("out_dir", "slots", "dtype", "threads")
    words = [f"--{name}={getattr(settings, name)}" for name in names]
    with running_server(*words) as (url, server):
        client = Client(int(url.rpartition(":")[2]), questions, settings)
        if settings.requests:
            memory(client, server.pid, settings.requests)
        else:
            show([load(client, int(n), settings.seconds) for n in settings.readers.split(",")])


def served_model(port):
    """The name of the model that the server lists first."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
        return json.load(answer)["data"][0]["id"]


class Client:
    """Asks one question after another and measures when the chunks of each answer arrive."""

    def __init__(self, port, questions, settings):
        self.port, self.settings = port, settings
        self.model = served_model(port)
        self.questions = itertools.cycle(questions)
        self.numbers = itertools.count()

    async def ask(self):
        """One answer: (seconds to its first text, [seconds between chunks], tokens, error)."""
        message = {"role": "user", "content": next(self.questions)}
        body = dict(messages=[message], stream=True, stream_options={"include_usage": True})
        body |= dict(model=self.model, max_tokens=self.settings.max_tokens)
        body |= dict(temperature=self.settings.temperature, seed=next(self.numbers))
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        began = last = time.perf_counter()
        first, gaps, tokens, ended = None, [], 0, False
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode() + data)
            status = await reader.readline()
            async for line in reader:
                now = time.perf_counter()
                if b'"content": "' in line and b'"content": ""' not in line:
                    if first is None:
                        first = now - began
                    else:
                        gaps.append(now - last)
                    last = now
                elif b'"completion_tokens"' in line:
                    tokens = json.loads(line[6:])["usage"]["completion_tokens"]
                ended |= line.startswith(b"data: [DONE]")
        finally:
            writer.close()
        error = None if ended and b" 200 " in status else status.decode().strip() or "cut off"
        return first, gaps, tokens, error


def load(client, n_readers, seconds):
    """Run n readers for so many seconds; return a row of the table."""
    began = time.perf_counter()
    answers = asyncio.run(_load(client, n_readers, seconds))
    seconds = time.perf_counter() - began  # each reader reads its last answer to the end
    tokens = sum(answer[2] for answer in answers)
    firsts = [answer[0] for answer in answers if answer[0] is not None]
    gaps = [gap for answer in answers for gap in answer[1]]
    errors = [answer[3] for answer in answers if answer[3]]
    print(f"{n_readers} readers: {len(answers)} answers, errors: {errors[:3]}", flush=True)
    return n_readers, tokens / seconds, firsts, gaps, len(errors)


async def _load(client, n_readers, seconds):
    until, answers = time.perf_counter() + seconds, []

    async def read():
        while time.perf_counter() < until:
            answers.append(await client.ask())

    await asyncio.gather(*(read() for _ in range(n_readers)))
    return answers


def show(rows):
    """Print the table of bench/README.md."""
    header = ["readers", "tokens/s", "÷ first row", "first token p50 / p99, ms"]
    header += ["between tokens p50 / p99, ms", "answers", "errors"]
    print(
        table(
            header,
            [
                [str(n), f"{rate:.0f}", f"{rate / rows[0][1]:.2f}"]
                + [
                    f"{percentile(times, 0.5)} / {percentile(times, 0.99)}"
                    for times in (firsts, gaps)
                ]
                + [str(len(firsts)), str(errors)]
                for n, rate, firsts, gaps, errors in rows
            ],
        )
    )


def memory(client, pid, requests):
    """Print the server's memory after every tenth of the requests."""

    async def part(count):
        for _ in range(count // 8):
            await asyncio.gather(*(client.ask() for _ in range(8)))

    for tenth in range(11):
        if tenth:
            asyncio.run(part(requests // 10))
        done = tenth * (requests // 10)
        print(f"after {done:6,} requests: {resident_memory(pid):.1f} MB", flush=True)


if __name__ == "__main__":
    run(main)
