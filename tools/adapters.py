"""LoRA adapters: merge them into the weights, export them to peft, or import them from peft.

    python tools/adapters.py --out_dir=out/lora                       # out/lora/merged, a run
    python tools/adapters.py --out_dir=out/lora --format=peft         # out/lora/peft, a folder
    python tools/adapters.py --input=PEFT_FOLDER --out_dir=out/base --output=out/lora

Every script loads a run of adapters directly and merges it in memory. A merged copy is needed only
to delete the base. peft's folder belongs to the base as tools/export.py writes it.
"""

import pathlib
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    out_dir: str = ""  # the run; with input: the base of peft's adapters
    format: Literal["run", "peft"] = "run"  # of the output
    input: str = ""  # a folder of peft to import as a run of adapters
    output: str = ""  # the folder to write; "": merged/ or peft/ in out_dir


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, doc=__doc__, quiet=True)
    if not settings.out_dir:
        raise UserError("which run? Give --out_dir=…")
    if settings.input and (settings.format == "peft" or not settings.output):
        raise UserError("--input: peft's adapters become a run: give --output=out/…, no --format")
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.interop.peft import load_peft, write_peft
from minigpt.models import checkpoint
from minigpt.models.lora import adapters


def main():
    settings = read_settings()
    folder = Path(settings.out_dir)
    name = "peft" if settings.format == "peft" else "merged"
    output = Path(settings.output or folder / name)
    if settings.format == "run" and checkpoint.exists(output):
        raise UserError(f"{output}: already holds a run; give another --output")
    trained = checkpoint.load(folder, merged=bool(settings.input))
    model = trained.model
    if settings.input:
        load_peft(settings.input, model)
        model.lora.base, model.lora.base_hash = folder, checkpoint.weights_hash(folder)
        resave(output, trained)
    elif not adapters(model):
        raise UserError(f"{folder}: a run without adapters; train some with --lora_rank=8")
    elif settings.format == "peft":
        write_peft(output, model)
        base = model.lora.base
        if not (base / "hf").is_dir():
            print(
                f"note: peft looks for the base in {base / 'hf'}; write it with: "
                f"python tools/export.py --out_dir={base}"
            )
    else:
        resave(output, checkpoint.load(folder))
    size = sum(path.stat().st_size for path in output.iterdir() if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


def resave(output, trained):
    """checkpoint.resave(), or UserError."""
    try:
        checkpoint.resave(output, trained)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{output}: cannot be written ({reason}); give another --output") from None


if __name__ == "__main__":
    run(main)
