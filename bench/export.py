"""Compare the token ids of exports, in transformers' library and in llama.cpp, with ours.

    python bench/export.py --input=TEXTS                       # `zh`
    python bench/export.py --input=TEXTS --tokenizer=gpt2

Exports an untrained model of the smallest size as a Hugging Face folder and as a GGUF file, cuts
every file of --input into pieces of --length characters, and counts the pieces whose ids differ.
Without llama-cpp-python, llama.cpp is skipped with a note.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = ""  # a file, or a folder with its subfolders; UTF-8
    length: int = 2000  # characters per piece


def read_settings():
    """The settings, checked."""
    return configure(Settings, shared="tokenizer", doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from tokenizers import Tokenizer

from minigpt.common.report import table
from minigpt.interop.gguf_export import write_gguf
from minigpt.interop.hf_export import write_hf
from minigpt.models import checkpoint
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    texts = read_texts(settings.input)
    ours = load_tokenizer(settings.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        readers = read_back(exported(pathlib.Path(folder), ours), pathlib.Path(folder))
    pieces = [
        text[start : start + settings.length]
        for text in texts
        for start in range(0, len(text), settings.length)
    ]
    others = dict.fromkeys(readers, 0)
    for piece in pieces:
        ids = ours.encode(piece)
        for name, encode in readers.items():
            others[name] += encode(piece) != ids
    rows = [[name, f"{len(pieces):,}", f"{count:,}"] for name, count in others.items()]
    print(table([ours.name, "pieces", "with other ids"], rows))


def read_texts(place):
    """The texts of a file or of all files in a folder. UserError if there are none."""
    path = pathlib.Path(place)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    if not place or not files:
        raise UserError(f"--input={place}: expected a file of text, or a folder that has some")
    try:
        return [(file := each).read_text(encoding="utf-8") for each in files]
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8; expected text alone under --input") from None


def exported(folder, tokenizer):
    """The Checkpoint of an untrained run in `folder`."""
    shape = dict(n_layer=1, n_head=1, n_embd=64, block_size=16)
    model = GPT(GPTConfig(padded_vocab_size=tokenizer.padded_vocab_size, **shape))
    meta = dict(prompt_format="plain", step=0, settings={})
    checkpoint.save(folder / "run", model, tokenizer, meta)
    return checkpoint.load(folder / "run")


def read_back(trained, folder):
    """name → text → ids, of each program that reads an export of `trained`."""
    write_hf(folder / "hf", trained, "float32")
    theirs = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    readers = {"tokenizers (transformers)": lambda text: theirs.encode(text).ids}
    try:
        import llama_cpp
    except ImportError:
        print("llama.cpp: left out; pip install llama-cpp-python gguf")
        return readers
    write_gguf(folder / "run.gguf", trained, "float32")
    model = llama_cpp.Llama(str(folder / "run.gguf"), vocab_only=True, verbose=False)
    words = dict(add_bos=False, special=False)
    readers["llama.cpp"] = lambda text: model.tokenize(text.encode(), **words)
    return readers


if __name__ == "__main__":
    run(main)
