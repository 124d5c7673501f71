"""Findings 1 to 9: data and pretraining. A is the report of a wiki MiniGPT, B that of three novels.

python findings/run.py layouts in_order
"""

from findings.experiments import Arm, Best, BlocksAStep, Check, Data, Finding, Run, Source
from findings.measures import (
    bits_per_char,
    empty_brackets,
    perplexity,
    rouge_held_out,
    token_errors,
)
from findings.runs import BASE, OVERFIT, QA, WIKI

TEXTS = Source("wiki")


def layout(name):
    return Arm(Run(Data("pretrain", TEXTS, layout=name)), over=WIKI)


LAYOUTS = Finding(
    number=1,
    name="layouts",
    claim="One text a block, cut at a sentence, gives a better model than all texts joined and cut "
    "anywhere (A).",
    run="The same texts in each layout, as many blocks read; split and concat beside.",
    arms={name: layout(name) for name in ("pad", "packed", "split")} | {"concat": Arm(BASE)},
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", "pad", "packed")],
)

IN_ORDER = Finding(
    number=2,
    name="in_order",
    claim="Blocks drawn at random train better than blocks in the order of the file (A).",
    run="Pretraining with if_trav=false and =true.",
    arms={"at random": Arm(BASE), "in order": Arm(Run(WIKI, if_trav=True))},
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", "at random", "in order")],
    curve=True,
)

RAW = Data("pretrain", TEXTS, clean=False)

CLEANING = Finding(
    number=3,
    name="cleaning",
    claim="Without cleaning the model writes empty brackets （） (A).",
    run="Pretraining on cleaned and on raw texts; held-out entries continued at temperature 0.4.",
    arms={"cleaned": Arm(BASE), "raw": Arm(Run(RAW), over=WIKI)},
    measures={"empty brackets in 1,000 characters": empty_brackets},
    checks=[Check("empty brackets in 1,000 characters", "cleaned", "raw")],
)

MORE_TEXT = Finding(
    number=4,
    name="more_text",
    claim="More text than the subset that the questions are about, in pretraining, makes "
    "fine-tuning better (A).",
    run="Pretraining on wiki/ alone and with novels/, as many steps, so that wiki/ is read less "
    "often there; both fine-tuned on qa/.",
    arms={
        "wiki": Arm(Run(QA, BASE)),
        "wiki and novels": Arm(Run(QA, Run(Data("pretrain", Source("wiki", "novels"))))),
    },
    measures={"answers: bits/char": bits_per_char, "Rouge-L, held out": rouge_held_out},
    checks=[Check("answers: bits/char", "wiki and novels", "wiki")],
)

OVER_TRAINED = Finding(
    number=5,
    name="over_trained",
    claim="Past its best val loss a model's perplexity and its Rouge-L get worse (A).",
    run="Pretraining on few texts, some 15 passes; at the best val loss and at the end.",
    arms={"best": Arm(Best(OVERFIT), over=WIKI), "last": Arm(OVERFIT, over=WIKI)},
    measures={"perplexity": perplexity, "Rouge-L, held out": rouge_held_out},
    checks=[Check("perplexity", "best", "last"), Check("Rouge-L, held out", "last", "best")],
)


def blocks_of(size, length=1):
    """Blocks of `size` tokens, as many tokens a step whatever the size."""
    data = Data("pretrain", TEXTS, block_size=size)
    return Arm(Run(data, length=length, batch_size=BlocksAStep(size)), over=WIKI)


BLOCK_SIZES = Finding(
    number=6,
    name="block_sizes",
    claim="A larger block learns more slowly and arrives at the same (B: 128, 256 and 512).",
    run="Blocks of 128, 256 and 512, as many tokens a step; whole trainings and of a third of the "
    "steps. The same: within 3 %.",
    arms={
        **{f"{size}": blocks_of(size) for size in (128, 256, 512)},
        **{f"{size}, a third": blocks_of(size, 1 / 3) for size in (128, 512)},
    },
    measures={"bits/char": bits_per_char},
    checks=[
        Check("bits/char", "128, a third", "512, a third"),
        Check("bits/char", "512", "128", within=0.03),
    ],
)

LEARNING_RATES = Finding(
    number=7,
    name="learning_rates",
    claim="A learning rate of 1e-3 is far better than 3e-4 and 1e-4 (B).",
    run="Pretraining by AdamW with each, the last rate a tenth.",
    arms={
        rate: Arm(
            Run(WIKI, optimizer="adamw", embedding_lr_ratio=1.0, learning_rate=rate), over=WIKI
        )
        for rate in ("1e-3", "3e-4", "1e-4")
    },
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", "1e-3", "3e-4"), Check("bits/char", "1e-3", "1e-4")],
    curve=True,
)

BATCHES = Finding(
    number=8,
    name="batches",
    claim="Batches of 8, 16 and 32 blocks do alike (B).",
    run="Pretraining with each, as many blocks read in all. Alike: within 3 %.",
    arms={
        f"{size}": Arm(Run(WIKI, length=8 / size, batch_size=size), over=WIKI)
        for size in (8, 16, 32)
    },
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", "16", "8", within=0.03), Check("bits/char", "32", "8", within=0.03)],
)

NUMBERS = Finding(
    number=9,
    name="numbers",
    claim="Numbers that follow no rule, such as postal codes, are what the model gets wrong (A).",
    run="The likeliest next token over held-out texts, for tokens with digits and for others.",
    arms={"digits": Arm(BASE, of="digits"), "others": Arm(BASE, of="others")},
    measures={"share of wrong tokens": token_errors},
    checks=[Check("share of wrong tokens", "others", "digits")],
)

FINDINGS = [
    LAYOUTS,
    IN_ORDER,
    CLEANING,
    MORE_TEXT,
    OVER_TRAINED,
    BLOCK_SIZES,
    LEARNING_RATES,
    BATCHES,
    NUMBERS,
]
