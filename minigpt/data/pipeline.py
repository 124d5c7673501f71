"""The preparation pipeline, one function per step:

    find_files      paths → files                             readers/files.py
    read_chunks     file → chunks, cut between records, by
        documents       open: file → unpacked documents       readers/containers.py
        to_utf8         decode: bytes → bytes in UTF-8        readers/encodings.py
        cut_into_chunks document → chunks                     readers/records.py
    parse_records   chunk → samples, by
        records_in      chunk → records, dicts                readers/records.py
        read_record     record → sample of a format           formats.py
    clean_samples   samples → cleaned samples                 cleaning.py
    hash_samples    samples → hashes, for duplicates and val  hashing.py
    tokenize        samples → tokens and targets              encoders.py
    DatasetWriter   tokens → blocks on the disk               writer.py, packing.py

    meta = prepare(PrepareOptions("data/sample", "data/processed", FORMATS["text"], block_size=512))
    print(table(meta))

This process reads the files and writes the blocks. Worker processes do what takes time: they turn a
chunk into an EncodedChunk (parse_records to tokenize).
"""

import gc
import itertools
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.common import report
from minigpt.common.errors import UserError
from minigpt.data.block_format import FORMAT
from minigpt.data.cleaning import clean as clean_text
from minigpt.data.cleaning import clean_all
from minigpt.data.encoders import SampleEncoder, encoder_of
from minigpt.data.formats import Entry, Format, parse_text, read_record
from minigpt.data.hashing import below, hash_all
from minigpt.data.packing import Segments, replacing, token_dtype
from minigpt.data.parallel import core_count, ordered_map
from minigpt.data.readers.chunks import Reject
from minigpt.data.readers.containers import READ_SIZE, documents
from minigpt.data.readers.encodings import Decoding
from minigpt.data.readers.files import SourceFile, find_files
from minigpt.data.readers.records import cut_into_chunks, records_in
from minigpt.data.sentences import SMALLEST_BLOCK, Cutter
from minigpt.data.writer import DatasetWriter, EncodedChunk
from minigpt.tokenizer.tokenizer import load_tokenizer

LARGEST_FRACTION = 0.1  # of the samples: the largest automatic val_fraction
SMALL_INPUT = 2**20  # bytes: up to here the automatic val_fraction looks at all of the input


@dataclass(frozen=True)
class PrepareOptions:
    """What prepare() reads and writes. UserError for impossible values."""

    input: object  # paths, as find_files() takes them
    dataset: str | Path  # the folder to write
    format: Format  # of the records
    encoder: SampleEncoder | None = None  # None: the default for the format
    tokenizer: str = "zh"
    block_size: int = 512
    layout: str = "concat"  # pad, split, concat or packed
    clean: bool = True  # of texts
    val_fraction: float | None = None  # share of the samples held out; None chooses
    skip_bad: bool = False  # copy bad records to rejects.jsonl instead of stopping at the first
    workers: int = 0  # processes; 0 takes every core
    command: str = ""  # the command line, for meta.json
    facts: Mapping = field(default_factory=dict)  # more for meta.json

    def __post_init__(self):
        encoder = self.encoder or encoder_of(self.format.sample_type)
        object.__setattr__(self, "encoder", encoder)
        problems = []
        if self.block_size < SMALLEST_BLOCK:
            problems.append(
                f"block_size={self.block_size}: expected at least {SMALLEST_BLOCK} tokens"
            )
        if self.workers < 0:
            problems.append(
                f"workers={self.workers}: expected 0 (every core) or a number of processes"
            )
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            problems.append(
                f"val_fraction={self.val_fraction}: expected a share between 0 and 1, or none"
            )
        if problems:
            raise UserError("\n".join(problems))


# -- the steps, in their order ---------------------------------------------------------------------


def read_chunks(source, encoding="auto"):
    """SourceFile → its Chunks: opened, decoded, cut between records. What there is to report is
    added to source.notes. UserError where it cannot be read or unpacked."""
    counted = 0
    for document in documents(source):
        decoding = Decoding(encoding)
        for chunk in cut_into_chunks(document, decoding):
            yield chunk._replace(size=source.size - counted)
            counted = source.size
        source.notes += [f"{document.name}: {note}" for note in decoding.notes()]


def parse_records(chunk, options):
    """Chunk → (samples, rejects)."""
    samples, rejects = [], []
    parse, validate = options.format.parse, options.encoder.check
    for line, record in records_in(chunk):
        if not isinstance(record, Reject):
            record = read_record(record, parse, chunk.source, line, validate, chunk.unit)
        (rejects if isinstance(record, Reject) else samples).append(record)
    return samples, rejects


def clean_samples(samples, options):
    """Return one sample per input. Texts are cleaned, or "" where nothing is left; others are not
    changed."""
    if options.format.sample_type is not Entry:
        return samples
    if options.clean:
        texts = _cleaned(samples)
    else:
        texts = [entry.text if entry.text.strip() else "" for entry in samples]
    return [Entry(entry.id, entry.title, text) for entry, text in zip(samples, texts, strict=True)]


def hash_samples(samples, options):
    """Samples → (hashes (n,) uint64 that find duplicates, hashes (n,) uint64 of which the lowest
    are val)."""
    contents = list(map(options.encoder.content, samples))
    if options.format.sample_type is Entry and not options.clean:
        # By the cleaned text: cleaned and raw data of the same files hold out the same entries.
        texts = zip(_cleaned(samples), contents, strict=True)
        keys = [text or content for text, content in texts]
    else:
        keys = list(map(options.encoder.split_key, samples))
    hashes = hash_all(contents)
    return hashes, hashes if keys == contents else hash_all(keys)


def tokenize(samples, options, cutter):
    """Samples → for each an Encoded, or the reason why it is dropped."""
    encoder = options.encoder
    texts = [encoder.texts(sample) for sample in samples]
    rows = iter(cutter.tokenizer.encode_batch(itertools.chain(*texts)))
    return [
        encoder.encode(sample, [next(rows) for _ in parts], cutter, options.layout)
        for sample, parts in zip(samples, texts, strict=True)
    ]


def _cleaned(entries):
    return clean_all([entry.text for entry in entries], [entry.title for entry in entries])


class ChunkWorker:
    """Chunk → EncodedChunk. options: with a val_fraction."""

    def __init__(self, options):
        self.options = options
        # Parallelism is by process; disable fastokens' threads.
        os.environ.update(FASTOKENS_BPE_THREADS="1", RAYON_NUM_THREADS="1")
        tokenizer = load_tokenizer(options.tokenizer)
        self.cutter = Cutter(tokenizer, options.block_size)
        self.dtype = token_dtype(tokenizer.n_vocab)
        gc.freeze()  # exclude the vocabulary from GC

    def __call__(self, chunk):
        options = self.options
        samples, rejects = parse_records(chunk, options)
        samples = clean_samples(samples, options)
        hashes, split_hashes = hash_samples(samples, options)
        encoded = tokenize(samples, options, self.cutter)

        result = EncodedChunk(chunk.size, rejects)
        result.dropped.update(reason for reason in encoded if isinstance(reason, str))
        kept = [i for i, found in enumerate(encoded) if not isinstance(found, str)]
        segments = [segment for i in kept for segment in encoded[i].segments]
        numbers = [
            (len(encoded[i].segments), encoded[i].characters, encoded[i].left_out) for i in kept
        ]
        result.segments = Segments.of(segments, self.dtype)
        result.numbers = np.array(numbers, np.int64).reshape(-1, 3)
        result.hashes = hashes[kept]
        in_val = np.flatnonzero(below(split_hashes[kept], options.val_fraction)).tolist()
        result.val = {n: options.encoder.to_json(samples[kept[n]]) for n in in_val}
        return result


# -- the whole -------------------------------------------------------------------------------------


def prepare(options):
    """Files → dataset folder; returns the contents of its meta.json.

    UserError for bad input, and when train or val would be empty; the folder is then unchanged.
    """
    files = find_files(options.input)
    tokenizer = load_tokenizer(options.tokenizer)
    if options.val_fraction is None:
        options = replace(options, val_fraction=automatic_fraction(files, options))
    with replacing(options.dataset) as folder:
        sources = [SourceFile(file) for file in files]
        counts = _write_dataset(folder, sources, tokenizer, options)
        _check_splits(counts, options.val_fraction)
        meta = _meta(sources, tokenizer, options, counts)
        text = json.dumps(meta, ensure_ascii=False, indent=2) + "\n"
        Path(folder, "meta.json").write_text(text, encoding="utf-8")
    return meta


def _write_dataset(folder, sources, tokenizer, options):
    """Read the sources and write all files but meta.json; returns the counts."""
    total = sum(source.path.stat().st_size for source in sources)
    processes = min(options.workers or core_count(), max(1, total // READ_SIZE))
    print(
        f"{len(sources)} file{'s' * (len(sources) > 1)}, {total / 1e6:.1f} MB, {processes} "
        f"process{'es' * (processes > 1)}; held out for val: {options.val_fraction:.2%} of the "
        "entries"
    )
    dtype, skip_bad = token_dtype(tokenizer.n_vocab), options.skip_bad
    writer = DatasetWriter(
        folder, options.layout, options.block_size, tokenizer.pad, dtype, skip_bad
    )
    chunks = (chunk for source in sources for chunk in read_chunks(source))
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="preparing") as bar:
            for encoded in ordered_map(ChunkWorker, options, chunks, processes):
                writer.add(encoded)
                bar.update(encoded.size)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _meta(sources, tokenizer, options, counts):
    return {
        "format": FORMAT,
        "tokenizer": options.tokenizer,
        "tokenizer_hash": tokenizer.hash,
        "n_vocab": tokenizer.n_vocab,
        "dtype": token_dtype(tokenizer.n_vocab).name,
        "block_size": options.block_size,
        "layout": options.layout,
        "prompt_format": options.encoder.prompt_format,
        "val_fraction": options.val_fraction,
        "counts": counts,
        "sources": [{"name": s.name, "bytes": s.size, "sha256": s.sha256} for s in sources],
        "command": options.command,
        **options.facts,
    }


def _check_splits(counts, fraction):
    """UserError unless both splits have a block."""
    if counts["train"]["blocks"] and counts["val"]["blocks"]:
        return
    dropped = ", ".join(f"{reason}: {n}" for reason, n in counts["dropped"].items())
    found = f"{counts['read']} entries read, {counts['kept']} kept"
    found += f" (dropped: {dropped})" if dropped else ""
    if not counts["kept"]:
        raise UserError(f"nothing to train on: {found}")
    empty, advice = ("train", "smaller") if counts["val"]["blocks"] else ("val", "larger")
    raise UserError(
        f"{found}, and none of them is in {empty} at val_fraction={fraction:.3g}: give more text, "
        f"or a {advice} --val_fraction"
    )


def automatic_fraction(files, options):
    """Return the fraction that gives val about encoder.held_out, at most LARGEST_FRACTION.

    How much the files hold is estimated from their sizes and a sample. From an input that is small
    enough to be read as a whole, val gets one entry at least.
    """
    encoder, total = options.encoder, sum(file.stat().st_size for file in files)
    is_small = total <= SMALL_INPUT
    n_bytes = amount = 0
    hashes = set()
    for file in files if is_small else files[:: -(-len(files) // 16)]:
        for chunk in read_chunks(SourceFile(file)):
            samples = clean_samples(parse_records(chunk, options)[0], options)
            samples = [sample for sample in samples if encoder.size(sample)]
            amount += sum(map(encoder.size, samples))
            hashes.update(hash_samples(samples, options)[1].tolist())
            n_bytes += chunk.size
            if not is_small:
                break
    if not hashes:
        return LARGEST_FRACTION
    fraction = min(LARGEST_FRACTION, encoder.held_out / amount * n_bytes / total)
    if is_small and len(hashes) > 1:
        fraction = max(fraction, min(hashes) / 2**64 * (1 + 1e-9))
    return fraction


# -- reading without encoding: files → samples, in this process ------------------------------------


def read_records(paths, parse):
    """Yield (kind of chunk, parse(record), record) for each record under `paths` (see find_files),
    in order. parse: of formats.py, or any function that raises BadRecord. UserError names file,
    line and beginning of a record that cannot be used."""
    for file in find_files(paths):
        for chunk in read_chunks(SourceFile(file)):
            for line, record in records_in(chunk):
                sample = record
                if not isinstance(record, Reject):
                    sample = read_record(record, parse, chunk.source, line, unit=chunk.unit)
                if isinstance(sample, Reject):
                    raise UserError(sample.message())
                yield chunk.kind, sample, record


def read_entries(paths, clean=True):
    """Yield the Entries under `paths`. UserError as in read_records().

    clean: remove title lines and leftovers (cleaning.py). Entries with nothing left are skipped;
    duplicates are not.
    """
    for _, entry, _ in read_records(paths, parse_text):
        text = clean_text(entry.text, entry.title) if clean else entry.text
        if text.strip():
            yield entry._replace(text=text)


# -- reports ---------------------------------------------------------------------------------------


def command_line(script):
    """Return the command that was given, for meta.json."""
    return shlex.join(["python", script, *sys.argv[1:]])


def table(meta):
    """Return the report at the end, as text."""
    counts, block_size = meta["counts"], meta["block_size"]
    dropped = sum(counts["dropped"].values())
    lines = [f"read {counts['read']:,} = kept {counts['kept']:,} + dropped {dropped:,}"]
    lines += [f"    dropped: {reason} {n:,}" for reason, n in counts["dropped"].items()]
    if counts["left_out"]:
        characters = sum(counts[split]["characters"] for split in ("train", "val"))
        share = counts["left_out"] / (characters + counts["left_out"])
        lines.append(
            f"    cut off at the end of the block: {share:.1%} of the kept entries' characters, in "
            f"{counts['cut']:,} of them"
        )
    header = ["", "entries", "characters", "tokens", "tokens/char", "targets", "blocks", "padding"]
    rows = []
    for split in ("train", "val"):
        n = counts[split]
        rows.append(
            [split]
            + [f"{n[name]:,}" for name in ("entries", "characters", "tokens")]
            + [f"{n['tokens'] / max(1, n['characters']):.3f}"]
            + [f"{n[name]:,}" for name in ("targets", "blocks")]
            + [f"{n['padding'] / (n['blocks'] * block_size):.1%}"]
        )
    return "\n".join([*lines, report.table(header, rows)])
