"""Export of a run to a Hugging Face folder, which transformers, vLLM and others load directly.

    write_hf("out/sft/hf", checkpoint.load("out/sft"), "bfloat16")
    AutoModelForCausalLM.from_pretrained("out/sft/hf")       # the same logits
    AutoTokenizer.from_pretrained("out/sft/hf")              # the same ids, and the chat template

A model that was imported keeps its family; any other is exported as the first that fits it: GPT-2,
Qwen3, Llama or Qwen2 (minigpt/interop/hf_config.py).
"""

import errno
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from minigpt.common.errors import UserError
from minigpt.common.files import read_json
from minigpt.interop.export_folder import DTYPES, NAME, converted, exported
from minigpt.interop.hf_weights import to_hf
from minigpt.tokenizer.export import end_ids, tokenizer_config, tokenizer_json

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def stranger(folder):
    """Why `folder` is not an earlier export, as the end of a sentence; None if it is one."""
    folder = Path(folder)
    if not folder.is_dir():
        return "is a file, but an export to Hugging Face's format is a folder"
    names = sorted(path.name for path in folder.iterdir())
    other = [name for name in names if name not in FILES]
    if other:
        return f"holds {other[0]}"
    try:
        config = read_json(folder / "config.json", "") if names else {}
    except (OSError, UserError):
        return "holds files of another model"
    return "holds another model" if names and config.get("exported_by") != NAME else None


def write_hf(folder, trained, dtype="float32"):
    """Write the run `trained` (a Checkpoint on the CPU) to `folder`, the weights as `dtype`, a key
    of export_folder.DTYPES. UserError if no architecture of Hugging Face fits the model."""
    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    config, weights = to_hf(trained.model, trained.meta.get("architecture"))
    weights = {name: converted(name, w, DTYPES[dtype]) for name, w in weights.items()}
    ids = dict(
        bos_token_id=None,
        eos_token_id=end_ids(tokenizer),
        pad_token_id=tokenizer.pad,
    )
    texts = {
        "config.json": config | ids | dict(dtype=dtype, exported_by=NAME),
        "generation_config.json": ids,
        "tokenizer_config.json": tokenizer_config(
            tokenizer, prompt_format, trained.model.config.block_size
        ),
    }
    with exported(folder) as partial:
        partial.mkdir()
        for name, values in texts.items():
            text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
            (partial / name).write_text(text, encoding="utf-8")
        tokenizer_json(tokenizer).save(str(partial / "tokenizer.json"))
        try:
            save_file(weights, partial / "model.safetensors", {"format": "pt"})
        except SafetensorError as error:  # the error of a failed write
            raise OSError(errno.EIO, f"is the disk full? {error}") from None
