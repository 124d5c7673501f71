"""Export a run for other programs: as a Hugging Face folder or a GGUF file.

    python tools/export.py --out_dir=out/sft                                # out/sft/hf
    python tools/export.py --out_dir=out/sft --format=gguf --dtype=q8_0     # out/sft/sft-q8_0.gguf
    python tools/export.py --out_dir=out/pretrain/best --output=models/base --dtype=bfloat16

The folder is for transformers and vLLM, the file for llama.cpp, Ollama and LM Studio. Both contain
weights, vocabulary and chat template; the commands that run them are printed. Logits and token ids
are the same as here. An imported model keeps its family (GPT-2, Llama, Mistral, Qwen2, Qwen3). A
model that none of them describes is refused.
"""

import pathlib
import re
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

QUESTION = "黄河发源于哪里？"


class Settings:
    format: Literal["hf", "gguf"] = "hf"  # hf: a folder; gguf: a file (pip install gguf)
    output: str = ""  # folder or file; "": hf/ or NAME-DTYPE.gguf in out_dir
    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] = "float32"  # of the weights; q8_0: 8
    #                   bits and a scale for every 32 values, only for gguf


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir", doc=__doc__, quiet=True)
    if settings.format != "gguf" and settings.dtype == "q8_0":
        raise UserError(
            "--dtype=q8_0: only for --format=gguf; expected float32, bfloat16 or float16"
        )
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.interop import gguf_export, hf_export
from minigpt.interop.export_folder import check_target
from minigpt.models import checkpoint
from minigpt.models.folders import model_names
from minigpt.tokenizer.export import answer_mark_text, special_texts
from minigpt.tokenizer.tokenizer import PATTERNS


def main():
    settings = read_settings()
    name = model_names([settings.out_dir])[0].replace("/", "-")
    output = Path(settings.output or default_output(settings, name))
    check(settings, output)
    trained = checkpoint.load(settings.out_dir)
    if settings.format == "hf":
        hf_export.write_hf(output, trained, settings.dtype)
        files = sorted(output.iterdir())
    else:
        gguf_export.write_gguf(output, trained, settings.dtype, name)
        files = [output]
    for path in files:
        print(f"{path.stat().st_size:>13,} bytes  {path}")
    for note in notes(settings, trained):
        print(f"note: {note}")
    print("\n" + (hf_commands if settings.format == "hf" else gguf_commands)(output, name, trained))


def default_output(settings, name):
    folder = Path(settings.out_dir)
    return folder / ("hf" if settings.format == "hf" else f"{name}-{settings.dtype}.gguf")


def check(settings, output):
    """UserError for settings that cannot work, before anything is loaded."""
    is_file = settings.format == "gguf"
    if is_file != (output.suffix == ".gguf"):
        expected = "a file, NAME.gguf" if is_file else "a folder, not a .gguf file"
        raise UserError(f"--output={output}: --format={settings.format} writes {expected}")
    checkpoint.read_meta(settings.out_dir)
    if is_file:
        gguf_export.need_gguf()
    check_target(output, (gguf_export if is_file else hf_export).stranger)


def notes(settings, trained):
    """Notes for the users of the export."""
    tokenizer, config = trained.tokenizer, trained.model.config
    if trained.prompt_format == "qa" and tokenizer.answer_mark not in special_texts(tokenizer):
        mark = answer_mark_text(tokenizer)
        yield (
            f'the answer mark "{mark}" is ordinary text in {tokenizer.name}: a question that ends '
            f'in "{mark[0]}" may become other ids elsewhere'
        )
    if settings.format == "hf" and config.head_dim not in (64, 128):
        yield f"head_dim={config.head_dim}: vLLM's attention may refuse it (64 and 128 always run)"
    if settings.format == "gguf" and tokenizer.imported and tokenizer.imported.nfc:
        yield "llama.cpp does not normalize text to Unicode's NFC, which this vocabulary needs"
    is_qwen3 = config.position == "rope" and config.qk_norm
    if settings.format == "gguf" and is_qwen3 and tokenizer.pattern != PATTERNS["qwen2"]:
        yield (
            "Ollama has an engine of its own for qwen3, which cuts text as Qwen does, whatever the "
            "file says: numbers become other ids there (not in llama.cpp or LM Studio)"
        )


# -- commands for other programs -------------------------------------------------------------------


def hf_commands(folder, name, trained):
    """Commands that run a Hugging Face folder."""
    return f"""transformers, in Python:
  from transformers import pipeline
  ask = pipeline("text-generation", "{folder.as_posix()}")
  turns = [{{"role": "user", "content": "{QUESTION}"}}]
  print(ask(turns, max_new_tokens={length(trained)}, do_sample=False)[0]["generated_text"][-1])
vLLM:
  vllm serve {quoted(folder)} --served-model-name {name} \\
    --override-generation-config '{{"temperature": 0.1, "top_k": 20}}'"""


def gguf_commands(path, name, trained):
    """Commands that run a GGUF file."""
    size = trained.model.config.block_size
    modelfile = path.parent / "Modelfile"
    return f"""llama.cpp:
  llama-server -m {quoted(path)} -c {size} --jinja --temp 0.1 --top-k 20
llama.cpp, in Python (pip install llama-cpp-python):
  from llama_cpp import Llama
  model = Llama("{path.as_posix()}", n_ctx={size}, verbose=False)
  turns = [{{"role": "user", "content": "{QUESTION}"}}]
  print(model.create_chat_completion(turns, max_tokens={length(trained)}, temperature=0))
LM Studio:
  lms import --copy {quoted(path)}
Ollama:
  ollama create {name} -f {quoted(modelfile)}
  ollama run {name}
where {modelfile} has these lines:

{gguf_export.modelfile(path, trained)}"""


def quoted(path):
    """A path as typed in any shell."""
    return str(path) if re.fullmatch(r"[\w./\\:-]*", str(path)) else f'"{path}"'


def length(trained):
    """Tokens for an answer: half of the context, the rest is for the question."""
    return trained.model.config.block_size // 2


if __name__ == "__main__":
    run(main)
