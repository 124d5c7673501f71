"""How server.py serves many at once: tokens a second, waiting times, errors, memory.

    python quickstart.py                                        # makes out/quickstart_sft
    python bench/serve.py --out_dir=out/quickstart_sft          # 1, 8 and 32 readers, 60 s each
    python bench/serve.py --out_dir=out/quickstart_sft --requests=10000     # memory, then

Starts the real server.py in a process of its own. Each reader asks a question of the bundled sample
by POST /v1/chat/completions, streamed, reads the answer to its end and asks the next. The readers
share the machine with the server, as one process. "First token" is the time from sending the
request to its first text, "between tokens" that between two pieces of text.
"""

import asyncio
import itertools
import json
import pathlib
import random
import socket
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import ROOT, UserError, run
from minigpt.common.report import table
from minigpt.evaluation.examples import read_pairs


class Settings:
    out_dir: str = "out/quickstart_sft"  # the run to serve
    input: str = "sft/sft_saves.jsonl"  # whose questions are asked
    readers: str = "1,8,32"  # at once
    seconds: float = 60.0  # for each of these
    requests: int = 0  # more than 0: so many requests of 8 readers instead, watching the memory
    temperature: float = 1.0  # of every request
    max_tokens: int = 128
    slots: int = 32  # of the server
    dtype: str = "auto"  # of the server
    threads: int = 0  # of the server, for its models; 0: as many as pay


def main():
    settings = configure(Settings, doc=__doc__)
    questions = [pair.question for pair in read_pairs(settings.input)]
    random.Random(0).shuffle(questions)
    port = free_port()
    words = [f"--out_dir={settings.out_dir}", f"--port={port}", f"--slots={settings.slots}"]
    words += [f"--dtype={settings.dtype}", f"--threads={settings.threads}"]
    command = [sys.executable, str(ROOT / "server.py"), *words]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(port, server)
        ask = Asking(port, questions, settings)
        if settings.requests:
            memory(ask, server.pid, settings.requests)
        else:
            rows = [load(ask, int(n), settings.seconds) for n in settings.readers.split(",")]
            show(rows)
    finally:
        server.terminate()
        server.wait(60)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(port, server):
    """Until GET /health says 200."""
    while server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if b" 200 " in connection.recv(100):
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise UserError("server.py did not start; run it by hand to see why")


def served_model(port):
    """The name of the model that the server lists first."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
        return json.load(answer)["data"][0]["id"]


class Asking:
    """Asks one question after another, and notes when each piece of an answer came."""

    def __init__(self, port, questions, settings):
        self.port, self.settings = port, settings
        self.model = served_model(port)
        self.questions = itertools.cycle(questions)
        self.numbers = itertools.count()

    async def once(self):
        """One answer: (seconds to its first text, [seconds between pieces], tokens, error)."""
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
                if b'"content":"' in line or b'"content": "' in line:
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


def load(ask, n_readers, seconds):
    """So many readers for so long; returns a row of the table."""
    began = time.perf_counter()
    answers = asyncio.run(_load(ask, n_readers, seconds))
    seconds = time.perf_counter() - began  # each reader hears its last answer out
    tokens = sum(answer[2] for answer in answers)
    firsts = sorted(answer[0] for answer in answers if answer[0] is not None)
    gaps = sorted(gap for answer in answers for gap in answer[1])
    errors = [answer[3] for answer in answers if answer[3]]
    print(f"{n_readers} readers: {len(answers)} answers, errors: {errors[:3]}", flush=True)
    return n_readers, tokens / seconds, firsts, gaps, len(errors)


async def _load(ask, n_readers, seconds):
    until, answers = time.perf_counter() + seconds, []

    async def read():
        while time.perf_counter() < until:
            answers.append(await ask.once())

    await asyncio.gather(*(read() for _ in range(n_readers)))
    return answers


def share(values, part):
    """The value that `part` of the sorted values do not exceed, in ms as text."""
    return f"{1000 * values[min(len(values) - 1, int(part * len(values)))]:.0f}" if values else "–"


def show(rows):
    """The table that stands in bench/README.md."""
    header = ["readers", "tokens/s", "÷ first row", "first token p50 / p99, ms"]
    header += ["between tokens p50 / p99, ms", "answers", "errors"]
    print(
        table(
            header,
            [
                [str(n), f"{rate:.0f}", f"{rate / rows[0][1]:.2f}"]
                + [f"{share(times, 0.5)} / {share(times, 0.99)}" for times in (firsts, gaps)]
                + [str(len(firsts)), str(errors)]
                for n, rate, firsts, gaps, errors in rows
            ],
        )
    )


def memory(ask, pid, requests):
    """The server's resident memory after every tenth of the requests."""

    async def part(count):
        for _ in range(count // 8):
            await asyncio.gather(*(ask.once() for _ in range(8)))

    status = pathlib.Path(f"/proc/{pid}/status")
    if not status.exists():
        raise UserError("--requests: needs /proc of Linux to see the server's memory")
    for tenth in range(11):
        if tenth:
            asyncio.run(part(requests // 10))
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        done = tenth * (requests // 10)
        print(f"after {done:6,} requests: {int(line.split()[1]) / 1024:.1f} MB", flush=True)


if __name__ == "__main__":
    run(main)
