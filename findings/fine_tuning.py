"""Findings 10 to 16: fine-tuning. A is the report of a wiki MiniGPT, B that of three novels, C that
of instructions for GPT-2.

python findings/run.py epochs
"""

from findings.experiments import Arm, Best, Check, Count, Data, Finding, Resized, Run, Source
from findings.measures import (
    bits_per_char,
    fall,
    perplexity,
    rebound,
    rise,
    rouge_held_out,
    rouge_taught,
    same_ending,
    sureness,
)
from findings.runs import BASE, OVERFIT, QA, SFT, WIKI

PAIRS = Source("qa")

SHORT_ANSWERS = Finding(
    number=10,
    name="short_answers",
    claim="Perplexity after fine-tuning is lower than after pretraining, for answers are short (A: "
    "1.33 and 2.3).",
    run="The base over held-out texts, the fine-tuned run over held-out answers, and the base over "
    "these. The reason is not tested.",
    arms={
        "pretrained": Arm(BASE, over=WIKI),
        "fine-tuned": Arm(SFT, over=QA),
        "pretrained, on answers": Arm(BASE, over=QA),
    },
    measures={"perplexity": perplexity},
    checks=[Check("perplexity", "fine-tuned", "pretrained")],
)

REBOUND = Finding(
    number=11,
    name="rebound",
    claim="In fine-tuning the val loss rebounds at the second to fourth evaluation, then falls "
    "(A).",
    run="Fine-tuning, an evaluation every 10 steps (gpu: 20).",
    arms={"fine-tuning": Arm(SFT)},
    measures={"rebound (nats)": rebound, "fall after it (nats)": fall},
    checks=[
        Check("rebound (nats)", 0.0, "fine-tuning"),
        Check("fall after it (nats)", 0.0, "fine-tuning"),
    ],
    curve=True,
)


PACKED = Run(Data("tune", PAIRS, layout="packed"), BASE)


def in_blocks(size, batch):
    """Fine-tuning in blocks of another size than the base's; both are Counts. A pair is shorter
    than any block: only where pairs fill it does its size mean anything."""
    data = Data("tune", PAIRS, layout="packed", block_size=Count(size))
    tuned = Run(data, Resized(BASE, Count(size)), batch_size=Count(batch))
    return Arm(tuned, over=QA)


OTHER_BLOCKS = Finding(
    number=12,
    name="other_blocks",
    claim="Fine-tuning in blocks of another size than pretraining's makes answers worse (B).",
    run="Pairs joined (packed), as many tokens a step: blocks of the base's size, of half and of "
    "twice that.",
    arms={
        "the same": Arm(PACKED, over=QA),
        "half": in_blocks("shorter_block", "shorter_batch"),
        "twice": in_blocks("longer_block", "longer_batch"),
    },
    measures={"answers: bits/char": bits_per_char, "Rouge-L, held out": rouge_held_out},
    checks=[
        Check("answers: bits/char", "the same", "half"),
        Check("answers: bits/char", "the same", "twice"),
    ],
)

FEW = Data("tune", Source("qa", count="few_pairs"))

FEW_PAIRS = Finding(
    number=13,
    name="few_pairs",
    claim="With 1,200 pairs the val loss does not converge, with all of them it does (B: 300,000).",
    run="Fine-tuning on 1,200 pairs and on all of qa/, as many steps, judged over the same pairs. "
    "Converged: the last val loss within 0.05 of the best.",
    arms={
        "1,200": Arm(Run(FEW, BASE, length=2.5, val_dataset=QA), over=QA),
        "all": Arm(Run(QA, BASE, length=2.5), over=QA),
    },
    measures={"val loss, last above best (nats)": rise, "answers: bits/char": bits_per_char},
    checks=[
        Check("val loss, last above best (nats)", "all", 0.05),
        Check("val loss, last above best (nats)", 0.05, "1,200"),
        Check("answers: bits/char", "all", "1,200"),
    ],
    curve=True,
)

LAST_BASE = Finding(
    number=14,
    name="last_base",
    claim="A base trained past its best val loss gives better answers than one stopped there (B).",
    run="Pretraining on few texts, some 15 passes; fine-tuning from its best and from its last "
    "step.",
    arms={"best": Arm(Run(QA, Best(OVERFIT))), "last": Arm(Run(QA, OVERFIT))},
    measures={"Rouge-L, held out": rouge_held_out, "answers: bits/char": bits_per_char},
    checks=[Check("Rouge-L, held out", "best", "last")],
)

EPOCHS = Finding(
    number=15,
    name="epochs",
    claim="Many epochs of fine-tuning make a model that is sure of what it saw, the same at "
    "temperature 1.5 as at 0.1, and worse on what it did not (A: above 8; 3 to 5 are enough).",
    run="Four epochs and twelve; taught questions answered at temperatures 0, 0.1 and 1.5.",
    arms={f"{n}": Arm(Run(QA, BASE, epochs=n)) for n in (4, 12)},
    measures={
        "Rouge-L, taught": rouge_taught,
        "Rouge-L, held out": rouge_held_out,
        "Rouge-L of 1.5 to 0.1": sureness,
    },
    checks=[
        Check("Rouge-L, taught", "4", "12"),
        Check("Rouge-L, held out", "12", "4"),
        Check("Rouge-L of 1.5 to 0.1", "4", "12"),
    ],
    curve=True,
)


def tuned(run):
    return Arm(run, over=QA, endings=WIKI)


TUNING_LAYOUTS = Finding(
    number=16,
    name="tuning_layouts",
    claim="Padding and whole pairs joined do alike and better than pairs torn apart, and none "
    "costs general ability (C: differences are small).",
    run="Fine-tuning in each layout, as many blocks read: 0.4 epochs padded, 5 joined. Which of "
    "four sentences follows, before and after. Alike: within 1 %, ability: within 10 %.",
    arms={
        "before": Arm(BASE, over=None, endings=WIKI),
        "pad": tuned(Run(Data("tune", PAIRS, layout="pad"), BASE)),
        "concat": tuned(SFT),
        "packed": tuned(PACKED),
    },
    measures={"answers: bits/char": bits_per_char, "right endings": same_ending},
    checks=[
        Check("answers: bits/char", "pad", "concat", within=0.01),
        Check("answers: bits/char", "concat", "packed"),
        *(Check("right endings", name, "before", 0.1) for name in ("pad", "concat", "packed")),
    ],
)

FINDINGS = [
    SHORT_ANSWERS,
    REBOUND,
    OTHER_BLOCKS,
    FEW_PAIRS,
    LAST_BASE,
    EPOCHS,
    TUNING_LAYOUTS,
]
