"""Speed of data/prepare.py compared with bare tiktoken, and its memory.

    python bench/prepare.py                                     # MB/s and the ratio to tiktoken
    python bench/prepare.py --input=wiki/ --megabytes=300
    python bench/prepare.py --memory=true --megabytes=1000      # peak of all its processes
    python bench/prepare.py --memory=true --megabytes=1000 --container=parquet     # or zst
    python bench/prepare.py --writer=true --megabytes=20        # of the one process that writes

The input recombines the sentences of --input at random into entries of 5 to 20 sentences, so it can
have any size and has no duplicate entries. The encoder caches words, so repeated sentences make it
a little faster than it is on real text. With --fresh=true entries are made of clauses cut at random
places, which hardly ever repeat; real text is not as varied. Bare tiktoken encodes the same cleaned
texts in memory, in one process; data/prepare.py is timed as a user runs it, start and writing
included. Rounds alternate; medians are shown.

The writer is timed alone, in processor time: the same encoded chunks again and again, with other
hashes each time, so that all entries are new and the set of seen hashes grows.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Settings:
    input: str = "data/sample"  # files or folders whose sentences are recombined
    megabytes: float = 200.0  # size of the file made from them
    fresh: bool = False  # entries of random clauses that hardly ever repeat
    workers: int = 2  # processes of data/prepare.py
    rounds: int = 3  # of bare tiktoken and data/prepare.py, alternating
    container: Literal["jsonl", "zst", "parquet"] = "jsonl"  # what data/prepare.py reads
    memory: bool = False  # measure memory instead of time
    writer: bool = False  # time the writer alone: duplicates, packing, files
    out_dir: str = "out"  # folder of the temporary input and dataset


def read_settings():
    """The settings, checked."""
    return configure(Settings, shared="tokenizer block_size layout", doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import numpy as np

from minigpt.common.report import table
from minigpt.data.formats import FORMATS
from minigpt.data.packing import token_dtype
from minigpt.data.pipeline import ChunkWorker, PrepareOptions, read_chunks, read_entries
from minigpt.data.readers.files import SourceFile
from minigpt.data.train_bpe import sentences
from minigpt.data.writer import DatasetWriter
from minigpt.tokenizer.tokenizer import load_tokenizer


def main():
    """Make the input, then measure."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    if problems := settings.below(rounds=1):  # --writer: passes over the chunks
        raise UserError("\n".join(problems))
    pathlib.Path(settings.out_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench_prepare_", dir=settings.out_dir) as name:
        folder = pathlib.Path(name)
        path = folder / "input.jsonl"
        recombined(settings.input, settings.megabytes, path, settings.fresh)
        packed = PACK[settings.container](path)
        command = [sys.executable, ROOT / "data/prepare.py", f"--input={packed}"]
        command += [f"--dataset={folder / 'processed'}", f"--workers={settings.workers}"]
        for name in ("tokenizer", "block_size", "layout"):
            command.append(f"--{name}={getattr(settings, name)}")
        if settings.writer:
            writer(settings, path, folder)
        else:
            (memory if settings.memory else speed)(settings, path, list(map(str, command)))


def recombined(paths, megabytes, path, fresh=False):
    """Write `megabytes` MB of entries in the format of wiki dumps to `path`."""
    texts = [entry.text for entry in read_entries(paths)]
    parts = [part for text in texts for part in sentences(text)]
    letters = re.sub(r"[\W_]+", "", "".join(texts))
    if len(parts) < 100:
        raise UserError(f"--input={paths}: {len(parts)} sentences; expected 100 at least")
    chance, size, number = random.Random(0), 0, 0

    def clauses():
        starts = [chance.randrange(len(letters) - 16) for _ in range(chance.randint(2, 5))]
        return "，".join(letters[start : start + chance.randint(4, 16)] for start in starts) + "。"

    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            number += 1
            title, n = f"题{number}", chance.randint(5, 20)
            text = "".join((clauses() for _ in range(n)) if fresh else chance.choices(parts, k=n))
            record = {"id": str(number), "title": title, "text": f"{title}\n\n{text}"}
            line = json.dumps(record, ensure_ascii=False) + "\n"
            size += len(line.encode())
            file.write(line)
    print(f"{path}: {size / 1e6:.0f} MB, {number:,} entries of {len(parts):,} sentences")


def as_zst(path):
    """Write a file again as .zst; return its path."""
    import zstandard

    packed = path.with_name("input.jsonl.zst")
    with open(path, "rb") as file, open(packed, "wb") as out:
        zstandard.ZstdCompressor().copy_stream(file, out)
    return packed


def as_parquet(path):
    """Write a .jsonl again as .parquet, in row groups of 10,000; return its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = path.with_name("input.parquet")
    schema = pa.schema([(name, pa.string()) for name in ("id", "title", "text")])
    with open(path, encoding="utf-8") as file, pq.ParquetWriter(packed, schema) as writer:
        while rows := [json.loads(line) for line in itertools.islice(file, 10_000)]:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return packed


PACK = {"jsonl": lambda path: path, "zst": as_zst, "parquet": as_parquet}


def speed(settings, path, command):
    """Print MB of text per second of bare tiktoken and of data/prepare.py, and their ratio."""
    texts = [entry.text for entry in read_entries(path)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    encode = load_tokenizer(settings.tokenizer)._encoding.encode_ordinary  # tiktoken's own
    bare, ours = [], []
    for _ in range(settings.rounds):
        start = time.perf_counter()
        for text in texts:
            encode(text)
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            raise UserError(f"data/prepare.py: {done.stderr.strip()}")
        ours.append(time.perf_counter() - start)
        print(f"bare tiktoken {bare[-1]:.2f} s, data/prepare.py {ours[-1]:.2f} s", flush=True)
    rows = [
        [name, f"{statistics.median(times):.2f}", f"{megabytes / statistics.median(times):.1f}"]
        for name, times in (
            ("bare tiktoken, 1 process", bare),
            (f"data/prepare.py, {settings.workers} workers", ours),
        )
    ]
    print(table([f"{megabytes:.0f} MB of text", "seconds", "MB/s"], rows))
    ratio = statistics.median(a / b for a, b in zip(bare, ours, strict=True))
    print(f"ratio {ratio:.2f} (median of {settings.rounds} rounds, {os.cpu_count()} cores)")


def memory(settings, path, command):
    """Print the peak memory of data/prepare.py and its workers together, and of each."""
    if not pathlib.Path("/proc/self/smaps_rollup").exists():
        raise UserError("--memory=true: needs /proc of Linux to see the memory of processes")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    peak, parts = 0, []
    while process.poll() is None:
        found = [proportional_set_size(pid) for pid in with_children(process.pid)]
        if sum(found) > peak:
            peak, parts = sum(found), found
        time.sleep(0.1)
    print(process.stdout.read())
    if process.returncode:
        raise UserError("data/prepare.py failed")
    shown = ", ".join(f"{part / 1e6:.0f}" for part in parts)
    print(f"peak {peak / 1e6:.0f} MB in {len(parts)} processes ({shown}), shared pages once")


def writer(settings, path, folder):
    """Print what the writer takes a second, as the set of seen hashes grows."""
    shape = dict(block_size=settings.block_size, layout=settings.layout)
    options = PrepareOptions(path, folder, FORMATS["text"], **shape, val_fraction=0.01)
    encode = ChunkWorker(options)
    chunks = [encode(chunk) for chunk in read_chunks(SourceFile(path))]
    n, size = sum(len(chunk.hashes) for chunk in chunks), path.stat().st_size
    tokenizer = load_tokenizer(options.tokenizer)
    dtype = token_dtype(tokenizer.n_vocab)
    target = DatasetWriter(
        folder, settings.layout, settings.block_size, tokenizer.pad, dtype, False
    )
    rows = []
    for i in range(settings.rounds):
        start = time.process_time()
        for chunk in chunks:
            target.add(replace(chunk, hashes=chunk.hashes ^ np.uint64(i)))
        seconds = time.process_time() - start
        rows.append([f"{(i + 1) * n:,}", f"{n / seconds:,.0f}", f"{size / 1e6 / seconds:,.0f}"])
    target.finish()
    print(table(["entries seen", "entries/s", "MB/s of input"], rows))


def with_children(pid):
    """The ids of the process and of all its descendants."""
    found = [pid]
    for parent in found:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                found += map(int, task.read_text().split())
    return found


def proportional_set_size(pid):
    """The proportional set size of a process in bytes: shared pages count in part."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    run(main)
