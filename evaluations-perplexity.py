"""How well a run predicts text: perplexity, bits per character and bits per byte.

    python evaluations-perplexity.py --out_dir=out/pretrain
    python evaluations-perplexity.py --out_dir=out/sft --dataset=data/processed_sft
    python evaluations-perplexity.py --out_dir=out/pretrain --text=novel.txt

Perplexity is over all targets of a dataset's split; it compares runs with the same tokenizer and
blocks. Bits per character are over the dataset's val.jsonl (of question–answer pairs the answers,
given their questions; of conversations the assistant's turns, given the turns before them) or over
any text. Every character counts once (a text's first token, which has no context, costs log2 of the
vocabulary size), so they compare any two runs.
"""

from pathlib import Path
from typing import Literal

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    dataset: str = ""  # a folder of prepared blocks; "": the run's training dataset
    split: Literal["val", "train"] = "val"  # which blocks; only val has its text in val.jsonl
    text: str = ""  # any text instead of a dataset: a .txt is one text, a .jsonl has one a line
    batch_size: int = 32  # rows in one forward pass; changes the speed, not the figures
    output: str = ""  # JSON file of the results; "": perplexity.json in out_dir


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="out_dir device dtype", doc=__doc__, quiet=True)
    if problems := settings.below(batch_size=1):
        raise UserError("\n".join(problems))
    if settings.text and settings.dataset:
        raise UserError("--text and --dataset: expected one of them")
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from data_utils import Blocks, read_meta
from minigpt.common.report import check_writable, table, write_json
from minigpt.evaluation.examples import read_conversations, read_pairs, read_texts
from minigpt.evaluation.perplexity import (
    answer_passages,
    block_perplexity,
    reply_passages,
    text_bits,
    text_passages,
)
from minigpt.models import checkpoint
from minigpt.models.device import pick_device, pick_dtype


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    trained = checkpoint.load(settings.out_dir, device)
    output = Path(settings.output or trained.folder / "perplexity.json")
    check_writable(output)
    tokenizer, meta = trained.tokenizer, trained.meta
    size = dict(batch_size=settings.batch_size, dtype=dtype)
    print(f"{trained.folder}: step {meta['step']}, {meta['prompt_format']}, {meta['tokenizer']}\n")

    figures = dict(
        out_dir=str(trained.folder),
        step=meta["step"],
        tokenizer=meta["tokenizer"],
        tokenizer_hash=tokenizer.hash,
        dtype=str(dtype).removeprefix("torch."),
    )
    if settings.text:
        passages = text_passages(tokenizer, read_texts(settings.text))
        name = settings.text
    else:
        dataset = settings.dataset or meta["dataset"]
        blocks = comparable_blocks(dataset, settings.split, trained)
        if blocks:
            over = dict(dataset=dataset, split=settings.split)
            figures["tokens"] = over | block_perplexity(trained.model, blocks, **size)
            show_tokens(figures["tokens"])
        passages, name = [], str(Path(dataset) / "val.jsonl")
        kept_as = read_meta(dataset)["prompt_format"] if settings.split == "val" else None
        if kept_as == "qa":
            pairs = read_pairs(name)
            passages = answer_passages(tokenizer, [(pair.question, pair.answer) for pair in pairs])
            name += ", answers"
        elif kept_as == "chat":
            passages = reply_passages(tokenizer, read_conversations(name))
            name += ", the assistant's turns"
        elif kept_as == "plain":
            passages = text_passages(tokenizer, read_texts(name))
    if passages:
        bits = text_bits(trained.model, passages, tokenizer.n_vocab, **size)
        figures["text"] = dict(name=name) | bits
        show_text(figures["text"])
    write_json(output, figures)
    print(f"figures: {output}")


def comparable_blocks(dataset, split, trained):
    """The blocks of a split; None, and a printed reason, if the run cannot read their tokens."""
    meta, tokenizer = read_meta(dataset), trained.tokenizer
    if meta["tokenizer_hash"] != tokenizer.hash:
        reason = f"its tokens are {meta['tokenizer']}'s, the run's {trained.meta['tokenizer']}'s"
    elif meta["block_size"] > trained.model.config.block_size:
        reason = f"its blocks of {meta['block_size']} tokens are longer than the run's"
    else:
        return Blocks(dataset, split, tokenizer)
    if split == "train":
        raise UserError(f"{dataset}: {reason}, and the text of the train split is not kept")
    print(f"{dataset}: no perplexity, because {reason}; bits per character are comparable\n")
    return None


def show_tokens(found):
    header = ["tokens of", "blocks", "targets", "loss (nats)", "perplexity"]
    row = [
        f"{found['dataset']} ({found['split']})",
        f"{found['blocks']:,}",
        f"{found['targets']:,}",
        f"{found['loss']:.4f}",
        f"{found['perplexity']:.3f}",
    ]
    print(table(header, [row]), end="\n\n")


def show_text(found):
    header = ["text of", "texts", "characters", "tokens/char", "bits/char", "bits/byte"]
    row = [
        found["name"],
        f"{found['texts']:,}",
        f"{found['characters']:,}",
        f"{found['tokens_per_char']:.3f}",
        f"{found['bits_per_char']:.4f}",
        f"{found['bits_per_byte']:.4f}",
    ]
    print(table(header, [row]), end="\n\n")


if __name__ == "__main__":
    run(main)
