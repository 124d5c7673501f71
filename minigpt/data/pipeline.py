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
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.common import report
from minigpt.common.errors import UserError
from minigpt.data.block_format import FORMAT
from minigpt.data.cleaning import Changes, clean_all, clean_light, is_wiki
from minigpt.data.encoders import SampleEncoder, encoder_of
from minigpt.data.formats import (
    TEXTS,
    Conversation,
    Entry,
    Format,
    LeftOut,
    Pair,
    read_record,
)
from minigpt.data.hashing import below, hash_all
from minigpt.data.packing import Segments, replacing, token_dtype
from minigpt.data.parallel.cluster import cluster_map
from minigpt.data.parallel.processes import core_count, ordered_map
from minigpt.data.readers.chunks import Chunk, Reject
from minigpt.data.readers.containers import READ_SIZE, documents
from minigpt.data.readers.encodings import Decoding, check_encoding
from minigpt.data.readers.files import SourceFile, find_files, search
from minigpt.data.readers.records import cut_into_chunks, records_in
from minigpt.data.sentences import SMALLEST_BLOCK, Cutter
from minigpt.data.shapes.dialogues import expanded
from minigpt.data.writer import DatasetWriter, EncodedChunk, check_splits
from minigpt.tokenizer.chat_template import to_json as prompt_format_json
from minigpt.tokenizer.tokenizer import load_tokenizer

CLEANING = ("auto", "wiki", "light", "none")
CLEANING_NAMES = {"true": "wiki", "false": "none"}  # older names
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
    clean: str = "auto"  # of texts: auto, wiki, light or none (see clean_samples)
    encoding: str = "auto"  # of the files, or the name of one
    show_cleaning: int = 1  # examples of each rule of cleaning that are kept
    val_fraction: float | None = None  # share of the samples held out; None chooses
    skip_bad: bool = False  # copy bad records to rejects.jsonl instead of stopping at the first
    workers: int = 0  # processes; 0 takes every core
    engine: str = "processes"  # of this machine, or ray: of a cluster
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
        if self.clean not in CLEANING:
            problems.append(f"clean={self.clean}: expected one of {', '.join(CLEANING)}")
        if problems:
            raise UserError("\n".join(problems))
        check_encoding(self.encoding)


@dataclass
class Parsed:
    """The records of a chunk. dropped: reason → records that teach nothing; shapes: what was
    recognized → records; unused: field → records whose field is not read."""

    samples: list = field(default_factory=list)
    rejects: list = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    shapes: Counter = field(default_factory=Counter)
    unused: Counter = field(default_factory=Counter)


# -- the steps, in their order ---------------------------------------------------------------------


def read_chunks(source, encoding="auto"):
    """SourceFile → its Chunks: opened, decoded, cut between records. What there is to report is
    added to source.notes. UserError where it cannot be read or unpacked."""
    counted = 0
    for document in documents(source):
        decoding, wiki = Decoding(encoding), None
        for chunk in cut_into_chunks(document, decoding):
            if wiki is None:  # decided once for a document, by how it begins
                wiki = _is_dump(chunk)
            yield chunk._replace(size=source.size - counted, wiki=wiki)
            counted = source.size
        source.notes += [f"{document.name}: {note}" for note in decoding.notes()]


def _chunks(source, options):
    """read_chunks(), but with skip_bad a file that cannot be read on is a bad record."""
    try:
        yield from read_chunks(source, options.encoding)
    except UserError as error:
        if not options.skip_bad:
            raise
        lost = source.path.stat().st_size - source.size
        reason = str(error).removeprefix(f"{source.name}: ")
        yield Chunk(source.name, "reject", 1, Reject(source.name, 1, reason, "", "file", lost))
    source.close()


def _is_dump(chunk):
    """Whether the first chunk of a document is of a wiki dump."""
    if chunk.kind in ("prose", "reject"):
        return False
    found = [record for _, record in itertools.islice(records_in(chunk), 50)]
    return is_wiki([record for record in found if not isinstance(record, Reject)])


def parse_records(chunk, options):
    """Chunk → Parsed."""
    parsed = Parsed()
    for record, found in _samples(chunk, options.format.parse, options.encoder.fit):
        if isinstance(found, Reject):
            parsed.rejects.append(found)
            continue
        shape, unused = options.format.shape_of(record)
        parsed.shapes[shape] += 1
        parsed.unused.update(unused)
        if isinstance(found, LeftOut):
            parsed.dropped[str(found)] += 1
        else:
            parsed.samples.append(found)
    return parsed


def _samples(chunk, parse, fit=None):
    """Yield (record, its sample or LeftOut or Reject) for each record of a chunk."""
    for line, record in records_in(chunk):
        for each in (record,) if isinstance(record, Reject) else expanded(record):
            yield each, _sample(chunk, line, each, parse, fit)


def _sample(chunk, line, record, parse, fit):
    """The sample of a record (a dict, or a Reject) of a chunk, or a LeftOut or a Reject."""
    if isinstance(record, Reject):
        return record
    sample = read_record(record, parse, chunk.source, line, fit)
    if isinstance(sample, Reject):
        size = len(sample.text.encode("utf-8", "replace"))
        return sample._replace(unit=chunk.unit, size=size)
    return sample


def clean_samples(samples, options, wiki, changes=None):
    """Return one sample per input. Texts are cleaned, or "" where nothing is left; others are not
    changed.

    wiki: whether they are of a wiki dump; then clean="auto" applies the rules for it, and else the
    light ones.  changes: Changes, in which is counted what the rules do.
    """
    entries = [sample for sample in samples if isinstance(sample, Entry)]
    texts = clean_texts(entries, options.clean, wiki, changes)
    cleaned = iter([e._replace(text=text) for e, text in zip(entries, texts, strict=True)])
    return [next(cleaned) if isinstance(sample, Entry) else sample for sample in samples]


def clean_texts(entries, how, wiki, changes=None):
    """The texts of Entries, cleaned: how is one of CLEANING; see clean_samples()."""
    how = ("wiki" if wiki else "light") if how == "auto" else how
    if how == "wiki":
        return clean_all([e.text for e in entries], [e.title for e in entries], changes)
    if how == "none":
        return [entry.text if entry.text.strip() else "" for entry in entries]
    texts = []
    for entry in entries:
        if changes is not None:
            changes.next_text()
        texts.append(clean_light(entry.text, changes))
    return texts


def hash_samples(samples, cleaned, options, wiki):
    """(samples, the same cleaned) → (hashes (n,) uint64 that find duplicates, hashes (n,) uint64 of
    which the lowest are val)."""
    contents = list(map(options.encoder.content, cleaned))
    keys = list(map(options.encoder.split_key, cleaned))
    entries = [i for i, sample in enumerate(samples) if isinstance(sample, Entry)]
    if entries and options.clean not in ("auto", "wiki" if wiki else "light"):
        # By the text as "auto" cleans it: whatever `clean` is, the same entries are held out.
        texts = clean_texts([samples[i] for i in entries], "auto", wiki)
        for i, text in zip(entries, texts, strict=True):
            keys[i] = text or contents[i]
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
        parsed = parse_records(chunk, options)
        changes = Changes(options.show_cleaning)
        samples = clean_samples(parsed.samples, options, chunk.wiki, changes)
        hashes, split_hashes = hash_samples(parsed.samples, samples, options, chunk.wiki)
        encoded = tokenize(samples, options, self.cutter)

        result = EncodedChunk(chunk.source, chunk.size, parsed.rejects, changes, parsed.dropped)
        result.shapes, result.unused = parsed.shapes, parsed.unused
        result.dropped.update(reason for reason in encoded if isinstance(reason, str))
        kept = [i for i, found in enumerate(encoded) if not isinstance(found, str)]
        segments = [segment for i in kept for segment in encoded[i].segments]
        numbers = [
            (len(encoded[i].segments), encoded[i].characters, encoded[i].left_out) for i in kept
        ]
        result.segments = Segments.of(segments, self.dtype)
        result.numbers = np.array(numbers, np.int64).reshape(-1, 3)
        result.hashes, result.split_hashes = hashes[kept], split_hashes[kept]
        encoder, in_val = options.encoder, below(split_hashes[kept], options.val_fraction)
        for n, index in enumerate(kept):
            if in_val[n]:
                result.val[n] = encoder.to_json(samples[index])
            elif encoder.keeps_records:
                result.train[n] = encoder.to_json(samples[index])
        return result


# -- the whole -------------------------------------------------------------------------------------


def prepare(options):
    """Files → dataset folder; returns the contents of its meta.json.

    UserError for bad input, and when train or val would be empty; the folder is then unchanged.
    """
    found = search(options.input)
    tokenizer = load_tokenizer(options.tokenizer)
    if options.val_fraction is None:
        options = replace(options, val_fraction=automatic_fraction(found.files, options))
    with replacing(options.dataset) as folder:
        sources = [SourceFile(file) for file in found.files]
        counts = _write_dataset(folder, sources, tokenizer, options)
        check_splits(counts, options.val_fraction)
        meta = _meta(sources, tokenizer, options, counts)
        members = [member for source in sources for member in source.passed_over]
        passed_over = [*((path.as_posix(), why) for path, why in found.passed_over), *members]
        meta["passed_over"] = [{"name": name, "reason": why} for name, why in passed_over]
        meta["notes"] = [note for source in sources for note in source.notes] + counts.pop("notes")
        text = json.dumps(meta, ensure_ascii=False, indent=2) + "\n"
        Path(folder, "meta.json").write_text(text, encoding="utf-8")
    return meta


def _write_dataset(folder, sources, tokenizer, options):
    """Read the sources and write all files but meta.json; returns the counts."""
    total = sum(source.path.stat().st_size for source in sources)
    processes = min(options.workers or core_count(), max(1, total // READ_SIZE))
    how = f"{processes} process{'es' * (processes > 1)}" if options.engine != "ray" else "Ray"
    print(
        f"{len(sources)} file{'s' * (len(sources) > 1)}, {total / 1e6:.1f} MB, {how}; held out for "
        f"val: {options.val_fraction:.2%} of the entries"
    )
    dtype, skip_bad = token_dtype(tokenizer.n_vocab), options.skip_bad
    writer = DatasetWriter(
        folder, options.layout, options.block_size, tokenizer.pad, dtype, skip_bad
    )
    if options.encoder.keeps_records:
        writer.keep_records()
    chunks = (chunk for source in sources for chunk in _chunks(source, options))
    if options.engine == "ray":
        encoded_chunks = cluster_map(ChunkWorker, options, chunks, options.workers)
    else:
        encoded_chunks = ordered_map(ChunkWorker, options, chunks, processes)
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="preparing") as bar:
            for encoded in encoded_chunks:
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
        **prompt_format_json(options.encoder.prompt_format),
        "val_fraction": options.val_fraction,
        "counts": counts,
        "cleaning": {rule: asdict(change) for rule, change in counts.pop("cleaning").items()},
        "sources": [{"name": s.name, "bytes": s.size, "sha256": s.sha256} for s in sources],
        "command": options.command,
        **options.facts,
    }


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
        for chunk in _chunks(SourceFile(file), options):
            raw = parse_records(chunk, options).samples
            samples = clean_samples(raw, options, chunk.wiki)
            kept = [i for i, sample in enumerate(samples) if encoder.size(sample)]
            raw, samples = ([each[i] for i in kept] for each in (raw, samples))
            amount += sum(map(encoder.size, samples))
            hashes.update(hash_samples(raw, samples, options, chunk.wiki)[1].tolist())
            n_bytes += chunk.size
            if not is_small:
                break
    if not hashes:
        return LARGEST_FRACTION
    fraction = min(LARGEST_FRACTION, encoder.held_out / amount * n_bytes / total)
    if is_small and len(hashes) > 1:
        fraction = max(fraction, min(hashes) / 2**64 * (1 + 1e-9))
    return fraction


def prompt_format_of(paths, format, encoding="auto"):
    """The prompt format that suits the first records of each file: "chat" if one has messages,
    instructions or a system text, else "qa"."""
    for file in find_files(paths):
        for chunk in itertools.islice(read_chunks(SourceFile(file), encoding), 1):
            for record, sample in _samples(chunk, format.parse):
                if isinstance(sample, Pair | Reject | LeftOut):
                    continue
                has_lists = any(isinstance(value, list) for value in record.values())
                if isinstance(sample, Conversation) or len(sample.turns) > 1 or has_lists:
                    return "chat"
    return "qa"


# -- reading without encoding: files → samples, in this process ------------------------------------


def read_records(paths, parse):
    """Yield (kind of chunk, parse(record), record) for each record under `paths` (see find_files),
    in order. parse: of formats.py, or any function that raises BadRecord. UserError names file,
    line and beginning of a record that cannot be used. How many teach nothing (LeftOut) is printed
    at the end."""
    for chunk, sample, record in _read(paths, parse):
        yield chunk.kind, sample, record


def _read(paths, parse):
    left_out = Counter()
    for file in find_files(paths):
        for chunk in read_chunks(SourceFile(file)):
            for record, sample in _samples(chunk, parse):
                if isinstance(sample, Reject):
                    raise UserError(sample.message())
                if isinstance(sample, LeftOut):
                    left_out[str(sample)] += 1
                else:
                    yield chunk, sample, record
    for reason, n in left_out.items():
        print(f"{paths}: left out: {reason} {n:,}", file=sys.stderr)


def read_entries(paths, clean="auto"):
    """Yield the Entries under `paths`. UserError as in read_records().

    clean: one of CLEANING. Entries with nothing left are skipped; duplicates are not.
    """
    for chunk, entry, _ in _read(paths, TEXTS.parse):
        (text,) = clean_texts([entry], clean, chunk.wiki)
        if text:
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
    lines += [f"    recognized: {shape} in {n:,}" for shape, n in counts["shapes"].items()]
    if counts["unused"]:
        unused = ", ".join(f"{name} ({n:,})" for name, n in counts["unused"].items())
        lines.append(f"    fields that are not read: {unused}")
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
    return "\n".join(
        [*_cleaning_table(meta["cleaning"]), *lines, *_notes(meta), report.table(header, rows)]
    )


def _cleaning_table(changes):
    """The lines of what each rule of cleaning has changed, with an example before and after."""
    if not changes:
        return []
    rows = [[rule, f"{n['entries']:,}", f"{n['characters']:,}"] for rule, n in changes.items()]
    lines = report.table(["changed by cleaning", "entries", "characters"], rows).split("\n")
    examples = ["example", *(shown_change(*n["examples"][0]) for n in changes.values())]
    return [*(f"{line}  {each}" for line, each in zip(lines, examples, strict=True)), ""]


def shown_change(before, after):
    """A change of cleaning on one line."""
    return f"{json.dumps(before, ensure_ascii=False)} → {json.dumps(after, ensure_ascii=False)}"


def cleaning_examples(meta, most):
    """Lines with at most so many places that cleaning has changed, of each rule in turn."""
    of_rules = [
        [f"{rule}: {shown_change(*example)}" for example in change["examples"]]
        for rule, change in meta["cleaning"].items()
    ]
    in_turn = itertools.chain(*itertools.zip_longest(*of_rules))
    return list(itertools.islice((line for line in in_turn if line), most))


def _notes(meta, most=10):
    """Lines about what was not read as it is, at most so many of a kind."""
    lines = list(meta["notes"])
    passed_over = [f"{each['name']} ({each['reason']})" for each in meta["passed_over"]]
    if passed_over:
        lines.append(f"passed over: {len(passed_over)} of the files")
    lines = [*_at_most(lines, most), *(f"    {line}" for line in _at_most(passed_over, most))]
    return lines


def _at_most(lines, most):
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"… {more:,} more in meta.json"]
