"""Vocabularies of Hugging Face models: byte-level BPE in, what tiktoken needs out.

    folder = source_folder("hf:Qwen/Qwen3-0.6B", TOKENIZER_FILES)    # or "hf:FOLDER"
    vocabulary = read_vocabulary(folder)    # of tokenizer.json, or of vocab.json and merges.txt

minigpt/tokenizer/tokenizer.py makes a Tokenizer of it: load_tokenizer("hf:…").

Hugging Face's BPE merges the pairs of a list, in its order; tiktoken merges two neighbours whenever
their bytes together are a token, the lowest rank first. Both give the same ids if the rank of a
token is the index of the pair that really makes it: the last merge when the bytes of the token are
encoded alone. In a text a token is made by the same merges as alone, for a merge across its edges
would have torn it. A token that no pair makes is never given by encoding, only decoded. Ranks need
not be in the order of ids.
"""

import functools
import heapq
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from minigpt.common import files
from minigpt.common.errors import UserError

PREFIX = "hf:"
TOKENIZER_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt", "added_tokens.json"),
)
# The texts of special ids in our exports and our API; other people's files may have them, too.
SPECIAL_TEXTS = {
    "EOT": "<|endoftext|>",
    "PAD": "<|pad|>",
    "A": "<|answer|>",
    "IM_START": "<|im_start|>",
    "IM_END": "<|im_end|>",
}
_OTHER_TEXTS = {"PAD": ("<pad>", "[PAD]")}  # other texts of it, if the files name none
MOST_IDS = 2**22  # sixteen times as many as the largest vocabularies have
_SENTENCEPIECE = (
    "the BPE of SentencePiece (byte_fallback), which Llama 2 and the first Mistral models have: it "
    "merges characters across words and puts a blank before a text, which tiktoken cannot do; only "
    "byte-level BPE can be imported (Llama 3, SmolLM2, Qwen, Mistral Nemo)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A vocabulary with all that encoding needs.

    ranks     token bytes → rank, 0 … len-1; the 256 bytes among them
    ids       the id of each rank
    unwritten id → bytes of tokens of text that encoding never gives
    special   our names → ids; those of the source if it has them, else new ones after its last
    pattern   the pre-tokenization: a name in tokenizer.PATTERNS, or a regular expression
    nfc       whether text is normalized to Unicode's NFC first
    n_source  the highest id of the source + 1
    """

    ranks: dict
    ids: list
    unwritten: dict
    special: dict
    pattern: str
    nfc: bool
    n_source: int


# -- the folder ------------------------------------------------------------------------------------


def source_folder(name, files):
    """Return the folder of `name` ("hf:FOLDER", or "hf:NAME" of a model on the Hugging Face hub).

    Of a model on the hub only `files` (names or patterns) are downloaded, and nothing if they are
    in the hub's cache. UserError if there is no such folder or model, or no network.
    """
    target = name.removeprefix(PREFIX)
    folder = Path(target).expanduser()
    about = folder / "config.json"
    if about.is_file() and '"prompt_format"' in about.read_text("utf-8", "replace"):
        raise UserError(f"{name}: {target} is a run of this project: leave hf: out")
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{name}: a file; expected the folder with it: {PREFIX}{folder.parent}")
    if len(folder.parts) > 1 and Path(folder.parts[0]).is_dir():
        raise UserError(f"{name}: no such folder")  # and it does not look like a name on the hub
    no_name = (
        f"{name}: {target or 'nothing'} is no folder here, and no name of a model on the hub "
        "(such as hf:gpt2 or hf:Qwen/Qwen3-0.6B)"
    )
    if not _HUB_NAME.fullmatch(target):
        raise UserError(no_name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"{name}: no folder here; for the hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(target, allow_patterns=list(files)))
    except HFValidationError:
        raise UserError(no_name) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: neither a folder here nor a model that the hub shows you; is it spelled "
            "right? (A gated model needs: hf auth login)"
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise UserError(
            f"{name}: no folder here, not in the hub's cache, and the hub cannot be reached "
            f"({reason}): download it where there is a network, and give the folder as hf:FOLDER"
        ) from None


def hf_name(path):
    """ "hf:FOLDER" if `path` is the folder of a Hugging Face model or vocabulary, or a file of one;
    None for anything else, such as a run of this project."""
    path = Path(path).expanduser()
    is_theirs = path.name in TOKENIZER_FILES or path.suffix in (".safetensors", ".bin", ".model")
    if not path.is_dir() and not (is_theirs and path.is_file()):
        return None
    folder = path if path.is_dir() else path.parent
    model = _fields(folder / "config.json")
    if "prompt_format" in model:  # a run; its tokenizer.json need not be read
        return None
    is_model = "model_type" in model or "architectures" in model
    if is_model or _is_bare(folder) or "model" in _fields(folder / "tokenizer.json"):
        return f"{PREFIX}{folder}"
    return None


def _fields(path):
    """The names in a JSON object; none if there is no such file."""
    try:
        return files.read_json(path, "").keys()
    except (OSError, UserError):
        return set()


def _is_bare(folder):
    """Whether it holds an older vocabulary, without tokenizer.json."""
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.model").is_file()


# -- its files -------------------------------------------------------------------------------------


def read_vocabulary(folder):
    """Return the Vocabulary of a model's folder; it is read once a process. UserError names what is
    missing, damaged, or not possible with tiktoken."""
    stamps = []
    for name in TOKENIZER_FILES:
        path = Path(folder) / name
        stamps.append(path.is_file() and (path.stat().st_mtime_ns, path.stat().st_size))
    return _read(Path(folder), tuple(stamps))


@functools.lru_cache(maxsize=2)
def _read(folder, stamps):
    """See read_vocabulary. stamps are part of the cache key: a changed file is read again."""
    whole = folder / "tokenizer.json"
    try:
        description = read_json(whole) if whole.is_file() else _of_two_files(folder)
        return _vocabulary(whole, description, _settings(folder))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{whole}: not as the tokenizers library writes it ({type(error).__name__}: {error}): "
            "copy the file again"
        ) from None


def read_json(path):
    """Return the object in a JSON file. UserError if it is missing or damaged."""
    try:
        return files.read_json(path, "copy it again")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; copy the model's whole folder") from None


def check_ids(ids):
    """ValueError unless all are whole numbers from 0 to below MOST_IDS: a table has a row for every
    id up to the highest."""
    for i in ids:
        if type(i) is not int or not 0 <= i < MOST_IDS:
            raise ValueError(f"token id {str(i)[:40]}: expected 0 to {MOST_IDS - 1}")


def _settings(folder):
    """The files that name special tokens: special_tokens_map.json, then tokenizer_config.json."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= read_json(folder / name)
    return found


def _of_two_files(folder):
    """vocab.json and merges.txt in the form of a tokenizer.json."""
    if not (folder / "vocab.json").is_file() and (folder / "tokenizer.model").is_file():
        raise UserError(f"{folder}/tokenizer.model: {_SENTENCEPIECE}")
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        raise UserError(
            f"{folder}: no vocabulary here: expected tokenizer.json, or vocab.json and merges.txt"
        )
    settings = _settings(folder)
    kind = settings.get("tokenizer_class")
    if kind is None and (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("model_type", "gpt2")
    kind = str(kind or "gpt2").lower().removesuffix("fast").removesuffix("tokenizer")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if kind in ("qwen2", "qwen3"):
        cut = {
            "type": "Split",
            "pattern": {"Regex": "qwen2"},
            "behavior": "Isolated",
            "invert": False,
        }
        byte_level = {"type": "Sequence", "pretokenizers": [cut, byte_level | {"use_regex": False}]}
    elif kind != "gpt2":
        raise UserError(
            f"{folder}: vocab.json without tokenizer.json is read for GPT-2's and Qwen's "
            f"tokenizers alone, and this is {kind}'s: have transformers save a tokenizer.json"
        )
    merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [
        line.rstrip("\r") for line in merges if line.strip() and not line.startswith("#version")
    ]
    added = {}
    if (folder / "added_tokens.json").is_file():
        for content, i in read_json(folder / "added_tokens.json").items():
            added[i] = {"id": i, "content": content, "special": False}
    for i, token in settings.get("added_tokens_decoder", {}).items():
        added[int(i)] = {**token, "id": int(i)}
    return {
        "normalizer": {"type": "NFC"} if kind.startswith("qwen") else None,
        "pre_tokenizer": byte_level,
        "added_tokens": list(added.values()),
        "model": {
            "type": "BPE",
            "vocab": read_json(folder / "vocab.json"),
            "merges": merges,
        },
    }


def _vocabulary(path, description, settings):
    model = description["model"]
    _check_model(path, model)
    pattern, nfc = _pattern(path, description), _is_nfc(path, description.get("normalizer"))
    added = {token["content"]: token for token in description.get("added_tokens") or ()}
    vocab = model["vocab"]
    check_ids([*vocab.values(), *(token["id"] for token in added.values())])
    special = _special(path, vocab, added, settings)
    apart = {*added, *(text for text in vocab if vocab[text] in special.values())}
    ordinary = {_to_bytes(path, text): i for text, i in vocab.items() if text not in apart}
    ranks, unreached = _rank(path, ordinary, _pairs(path, model["merges"]), model)
    unwritten = {ordinary[token]: token for token in unreached}
    taken = {*ordinary.values(), *special.values()}
    for content, token in added.items():
        if not token.get("special") and token["id"] not in taken:
            unwritten[token["id"]] = content.encode()  # such as <think>: text to a reader
    last = max(*vocab.values(), *(token["id"] for token in added.values()), 0)
    ids = [ordinary[token] for token in ranks]
    return Vocabulary(ranks, ids, unwritten, special, pattern, nfc, last + 1)


def _check_model(path, model):
    """UserError unless the model is a plain byte-level BPE."""
    kind = model.get("type", "BPE")
    wrong = "" if kind == "BPE" else f"a model of type {kind}"
    if model.get("byte_fallback"):
        raise UserError(f"{path}: {_SENTENCEPIECE}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            wrong = f"{name}={model[name]}"
    if wrong:
        raise UserError(f"{path}: has {wrong}; only byte-level BPE can be imported")


def _is_nfc(path, normalizer):
    """Return whether the normalizer is NFC (true) or none (false); UserError for any other."""
    if normalizer and normalizer.get("type") == "Sequence" and len(normalizer["normalizers"]) < 2:
        normalizer = next(iter(normalizer["normalizers"]), None)
    if not normalizer:
        return False
    if normalizer["type"] != "NFC":
        raise UserError(
            f"{path}: its normalizer is {normalizer['type']}; only NFC, or none, can be imported"
        )
    return True


def _pattern(path, description):
    """The pre-tokenizer as Vocabulary.pattern. UserError if there is no such pattern."""
    steps = description.get("pre_tokenizer") or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    kinds = [step["type"] for step in steps]
    if kinds[-1:] != ["ByteLevel"]:
        raise UserError(
            f"{path}: its pre-tokenizer is {' + '.join(kinds) or 'empty'}, which does not end with "
            "ByteLevel; only byte-level BPE can be imported"
        )
    last = steps[-1]
    if last.get("add_prefix_space", True):
        raise UserError(
            f"{path}: its pre-tokenizer puts a blank before every text (add_prefix_space); that "
            "cannot be imported"
        )
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"  # its own regular expression
    digits = steps[0].get("individual_digits")
    if kinds == ["Digits", "ByteLevel"] and digits and last.get("use_regex", True):
        return "smollm"  # every digit alone, then GPT-2's: both splits as one pattern
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        cut = steps[0]
        if cut["behavior"] == "Isolated" and not cut.get("invert") and "Regex" in cut["pattern"]:
            return cut["pattern"]["Regex"]
    raise UserError(
        f"{path}: its pre-tokenizer {' + '.join(kinds)} is none of those that can be imported: "
        "GPT-2's ByteLevel, or one isolating Split by a regular expression before it"
    )


def _special(path, vocab, added, settings):
    """Our special names → ids: those of the source, each for one name, else new ones."""
    ids = {**vocab, **{content: token["id"] for content, token in added.items()}}
    named = {"EOT": _text(settings.get("eos_token")), "PAD": _text(settings.get("pad_token"))}
    found = {}
    # Chat marks first: the eos of a chat model is often <|im_end|>. PAD last.
    for name in ("IM_START", "IM_END", "EOT", "A", "PAD"):
        for text in (named.get(name), SPECIAL_TEXTS[name], *_OTHER_TEXTS.get(name, ())):
            if text in ids and ids[text] not in found.values():
                found[name] = ids[text]
                break
    new = max(ids.values()) + 1
    special = {}
    for name in SPECIAL_TEXTS:
        special[name] = found.get(name, new)
        new += name not in found
    return special


def _text(token):
    """The text of a special token in tokenizer_config.json: a string, or a dict with it."""
    return token.get("content") if isinstance(token, dict) else token


# -- pairs → ranks ---------------------------------------------------------------------------------


def byte_characters():
    """Return the character with which byte-level BPE writes each of the 256 bytes.

    A byte that is printable in Latin-1 is that character; the others are, in order, the characters
    from U+0100 on (GPT-2's table; `tokenizers` has no function for it).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@functools.cache
def _byte_of():
    """character → byte."""
    return {character: byte for byte, character in enumerate(byte_characters())}


def _to_bytes(path, text):
    try:
        return bytes([_byte_of()[character] for character in text])
    except KeyError:
        raise UserError(
            f"{path}: the token {text!r} is not written in the characters of byte-level BPE; only "
            "such vocabularies can be imported"
        ) from None


def _pairs(path, merges):
    """(left, right) in bytes → its index in the list."""
    halves = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return {
        (_to_bytes(path, left), _to_bytes(path, right)): index
        for index, (left, right) in enumerate(halves)
    }


def _rank(path, ordinary, pairs, model):
    """(token bytes → rank, tokens that encoding never gives) of `ordinary`, token bytes → id."""
    missing = [byte for byte in range(256) if bytes([byte]) not in ordinary]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the 256 single bytes have no token (the first is "
            f"0x{missing[0]:02x}), so not every text could be written"
        )
    unknown = [left + right for left, right in pairs if left + right not in ordinary]
    if unknown:
        raise UserError(f"{path}: a merge makes {unknown[0]!r}, which is no token: damaged?")
    indices, alone, unreached = {}, [], []
    for token in ordinary:
        if len(token) == 1:
            continue
        parts, index = _joined(token, pairs)
        if len(parts) == 1:
            indices[token] = index
        elif not model.get("ignore_merges"):
            unreached.append(token)
        elif len(parts) == 2:
            raise UserError(
                f"{path}: the token {token!r} is encoded as a whole (ignore_merges) although its "
                "halves are tokens that no merge joins; tiktoken would join them"
            )
        else:
            alone.append(token)
    single = sorted((token for token in ordinary if len(token) == 1), key=ordinary.get)
    made = sorted(indices, key=indices.get)
    order = [*single, *made, *sorted(alone, key=ordinary.get)]
    return {token: rank for rank, token in enumerate(order)}, unreached


def _joined(token, pairs):
    """What BPE makes of the bytes of a token: (the parts that are left, index of the last pair)."""
    parts, index, n = [token[i : i + 1] for i in range(len(token))], None, len(token)
    # A part is named by the index of its first byte: of each the next part and the one before.
    following, preceding = list(range(1, n + 1)), list(range(-1, n - 1))
    found = [(pairs[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in pairs]
    heapq.heapify(found)
    while found:
        this, i = heapq.heappop(found)
        j = following[i]
        if j == n or pairs.get((parts[i], parts[j])) != this:
            continue  # one of the two was joined with another before
        index, after = this, following[j]
        parts[i], parts[j], following[i] = parts[i] + parts[j], None, after
        if after < n:
            preceding[after] = i
        for left, right in ((preceding[i], i), (i, after)):
            if left >= 0 and right < n and (parts[left], parts[right]) in pairs:
                heapq.heappush(found, (pairs[parts[left], parts[right]], left))
    return [part for part in parts if part is not None], index
