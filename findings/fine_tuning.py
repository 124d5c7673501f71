"""Findings 10 to 16 and 23: fine-tuning. A is the report of a wiki MiniGPT, B that of three novels,
C that of instructions for GPT-2.

python findings/run.py epochs
"""

import itertools

from findings.claims import Arm, Check, Finding
from findings.experiments import Best, Continued, Count, Data, Resized, Run, Source
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
    source="A: perplexity is 2.3 after pretraining and 1.33 after fine-tuning.",
    claim="Perplexity after fine-tuning is lower than after pretraining, for answers are short (A: "
    "1.33 and 2.3).",
    run="The base over held-out texts, the fine-tuned run over held-out answers, and the base over "
    "these.",
    differs="The reason is not tested.",
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
    source="A: the loss drops at once, rebounds at the second to fourth evaluation, then falls.",
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
    source="B: a block size other than pretraining's makes answers worse.",
    claim="Fine-tuning in blocks of another size than pretraining's makes answers worse (B).",
    run="Pairs joined (packed), as many tokens a step: blocks of the base's size, of half and of "
    "twice that.",
    differs="B reads the answers. Here the loss over them counts.",
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
    source="B: with 1,200 pairs the val loss does not converge; with 300,000 it does, up to "
    "50,000 steps without a rebound.",
    claim="With 1,200 pairs the val loss does not converge, with all of them it does (B: 300,000).",
    run="Fine-tuning on 1,200 pairs and on all of qa/, as many steps, judged over the same pairs. "
    "Converged: the last val loss within 0.05 of the best.",
    differs="All pairs of qa/ are a hundredth of B's.",
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
    source="B: a base trained to 50,000 steps gives better answers than one stopped at its best "
    "val loss, at 20,000.",
    claim="A base trained past its best val loss gives better answers than one stopped there (B).",
    run="Pretraining on few texts, some 15 passes; fine-tuning from its best and from its last "
    "step.",
    differs="B trains 2.5 times as long as to the best loss. Here few texts are read some 15 "
    "times, and the best checkpoint is an early one.",
    arms={"best": Arm(Run(QA, Best(OVERFIT))), "last": Arm(Run(QA, OVERFIT))},
    measures={"Rouge-L, held out": rouge_held_out, "answers: bits/char": bits_per_char},
    checks=[Check("Rouge-L, held out", "best", "last")],
)

EPOCHS = Finding(
    number=15,
    name="epochs",
    source="A: after more than 8 epochs the model is sure and right on taught questions, answers "
    "at temperature 1.5 as at 0.1, and is worse on new ones; 3 to 5 epochs are enough.",
    claim="Many epochs of fine-tuning make a model that is sure of what it saw, the same at "
    "temperature 1.5 as at 0.1, and worse on what it did not (A: above 8; 3 to 5 are enough).",
    run="Four epochs and twelve; taught questions answered at temperatures 0, 0.1 and 1.5.",
    differs="A reads the answers. Here Rouge-L counts.",
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
    source="C: in val loss padding and concat are alike and better than packed, with small "
    "differences. concat joins whole samples, which see one another; packed tears them apart. "
    "HellaSwag stays: 0.3114 before, then 0.3125, 0.3116, 0.3138.",
    claim="Padding and whole pairs joined do alike and better than pairs torn apart, and none "
    "costs general ability (C: differences are small).",
    run="Fine-tuning in each layout, as many blocks read: 0.4 epochs padded, 5 joined. Joined "
    "pairs see one another; isolated ones are beside. Which of four sentences follows, before and "
    "after. Alike: within 1 %, ability: within 10 %.",
    differs="Each layout reads as many blocks, so padding sees fewer pairs. Endings of held-out "
    "wiki texts replace HellaSwag. Isolated concat is not C's.",
    arms={
        "before": Arm(BASE, over=None, endings=WIKI),
        "pad": tuned(Run(Data("tune", PAIRS, layout="pad"), BASE)),
        "concat": tuned(Run(QA, BASE, isolate=False)),
        "concat, isolated": tuned(SFT),
        "packed": tuned(PACKED),
    },
    measures={"answers: bits/char": bits_per_char, "right endings": same_ending},
    checks=[
        Check("answers: bits/char", "pad", "concat", within=0.01),
        Check("answers: bits/char", "concat", "packed"),
        *(Check("right endings", name, "before", 0.1) for name in ("pad", "concat", "packed")),
    ],
)

# B's 10,000, 50,000, … 300,000 steps as multiples of the first.
MULTIPLES = (1, 5, 10, 20, 30)


def along():
    """One fine-tuning at each of the MULTIPLES, 30 of which are the usual length."""
    length = 1 / MULTIPLES[-1]
    run = Run(QA, BASE, length=length, schedule="constant")
    runs = {"1 ×": run}
    for multiple in MULTIPLES[1:]:
        run = runs[f"{multiple} ×"] = Continued(run, multiple * length)
    return {name: Arm(run) for name, run in runs.items()}


LONG_TUNING = Finding(
    number=23,
    name="long_tuning",
    source="B: of 10,000 to 300,000 steps of fine-tuning, 50,000 answer best over all; 200,000 are "
    "incoherent, 300,000 best at some questions. The val loss keeps falling, so it does not tell.",
    claim="From 1 to 30 times some steps of fine-tuning the val loss keeps falling, but answers do "
    "not keep getting better: 5 times as many are the best (B).",
    run="One fine-tuning at a constant rate, with answers at 1, 5, 10, 20 and 30 thirtieths of it "
    "(150 steps, about 4 epochs).",
    differs="B reads the answers; here Rouge-L counts. B has a hundred times the pairs.",
    arms=along(),
    measures={"answers: bits/char": bits_per_char, "Rouge-L, held out": rouge_held_out},
    checks=[
        *(
            Check("answers: bits/char", f"{later} ×", f"{earlier} ×")
            for earlier, later in itertools.pairwise(MULTIPLES)
        ),
        *(Check("Rouge-L, held out", f"{multiple} ×", "5 ×") for multiple in (10, 20, 30)),
    ],
    curve=True,
)

FINDINGS = [
    SHORT_ANSWERS,
    REBOUND,
    OTHER_BLOCKS,
    FEW_PAIRS,
    LAST_BASE,
    EPOCHS,
    TUNING_LAYOUTS,
    LONG_TUNING,
]
