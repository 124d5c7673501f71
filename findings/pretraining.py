"""Findings 1 to 9 and 22: data and pretraining. A is the report of a wiki MiniGPT, B that of three
novels, D that on all stages of a 26M model.

python findings/run.py layouts in_order
"""

from findings.claims import Arm, Check, Finding
from findings.experiments import Best, BlocksAStep, Data, PairsAbout, Run, Source
from findings.measures import (
    bits_per_char,
    empty_brackets,
    perplexity,
    rouge_held_out,
    token_errors,
)
from findings.runs import BASE, WIKI

TEXTS = Source("wiki")


def layout(name):
    return Arm(Run(Data("pretrain", TEXTS, layout=name)), over=WIKI)


LAYOUTS = Finding(
    number=1,
    name="layouts",
    source="A: texts joined together give poor results; one text a block, cut after the last 。 "
    "that fits, gives good ones.",
    claim="One text a block, cut at a sentence, gives a better model than all texts joined and cut "
    "anywhere (A).",
    run="The same texts in each layout, as many blocks read; split and concat beside.",
    differs="A reads what the models write. Here the loss counts, over whole held-out texts, of "
    "which pad has seen the beginnings only.",
    arms={name: layout(name) for name in ("pad", "packed", "split")} | {"concat": Arm(BASE)},
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", "pad", "packed")],
)

IN_ORDER = Finding(
    number=2,
    name="in_order",
    source="A: blocks drawn at random are clearly better than blocks in order.",
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
    source="A: without cleaning the model writes empty brackets （）.",
    claim="Without cleaning the model writes empty brackets （） (A).",
    run="Pretraining on cleaned and on raw texts; held-out entries continued at temperature 0.4.",
    arms={"cleaned": Arm(BASE), "raw": Arm(Run(RAW), over=WIKI)},
    measures={"empty brackets in 1,000 characters": empty_brackets},
    checks=[Check("empty brackets in 1,000 characters", "cleaned", "raw")],
)

# Of a sixth of the texts, as many steps as of all of them are some ten passes: it over-fits.
PART = 1 / 6
PART_WIKI = Data("pretrain", Source("wiki", part=PART))
PART_QA = Data("tune", PairsAbout(PART_WIKI.source))
OF_PART = Run(PART_WIKI)


def tuned_about_the_part(base):
    return Arm(Run(PART_QA, base, length=PART))


MORE_TEXT = Finding(
    number=4,
    name="more_text",
    source="A: more texts of the same wiki than the subset that the questions are about, in "
    "pretraining, make fine-tuning better.",
    claim="A base that was trained on the whole wiki answers questions about a sixth of it better "
    "than a base that was trained on this sixth, with equal passes and with equal steps (A).",
    run="Pretraining on all of wiki/, on a sixth of its texts for as many passes (a sixth of the "
    "steps), and on this sixth for as many steps; each fine-tuned on the pairs about the sixth.",
    differs="A adds texts and trains on. Here each base starts from scratch, so that passes or "
    "steps are equal.",
    arms={
        "whole wiki": tuned_about_the_part(BASE),
        "a sixth, equal passes": tuned_about_the_part(Run(PART_WIKI, length=PART)),
        "a sixth, equal steps": tuned_about_the_part(OF_PART),
    },
    measures={"answers: bits/char": bits_per_char, "Rouge-L, held out": rouge_held_out},
    checks=[
        Check("answers: bits/char", "whole wiki", "a sixth, equal passes"),
        Check("answers: bits/char", "whole wiki", "a sixth, equal steps"),
    ],
)

OVER_TRAINED = Finding(
    number=5,
    name="over_trained",
    source="A: past 200,000 steps the model over-fits: the val loss turns up, perplexity is 2.5 "
    "instead of 2.3, Rouge-L is alike.",
    claim="Past its best val loss a model's perplexity gets worse, and its Rouge-L stays alike "
    "(A).",
    run="Pretraining on a sixth of wiki/, some 10 passes; at the best val loss and at the end. "
    "Alike: within 10 %.",
    differs="A's perplexity is 9 % above its best. Here the texts are so few that it rises far "
    "more.",
    arms={"best": Arm(Best(OF_PART), over=WIKI), "last": Arm(OF_PART, over=WIKI)},
    measures={"perplexity": perplexity, "Rouge-L, held out": rouge_held_out},
    checks=[
        Check("perplexity", "best", "last"),
        Check("Rouge-L, held out", "last", "best", within=0.1),
    ],
)


def blocks_of(size, length=1):
    """Blocks of `size` tokens, as many tokens a step whatever the size."""
    data = Data("pretrain", TEXTS, block_size=size)
    return Arm(Run(data, length=length, batch_size=BlocksAStep(size)), over=WIKI)


BLOCK_SIZES = Finding(
    number=6,
    name="block_sizes",
    source="B: larger blocks (128, 256, 512, 910) converge more slowly to nearly the same loss, "
    "about 2; 128 continues texts slightly worse, the others alike.",
    claim="A larger block learns more slowly and arrives at the same (B: 128, 256 and 512).",
    run="Blocks of 128, 256 and 512, as many tokens a step; whole trainings and of a third of the "
    "steps. The same: within 3 %.",
    differs="No block of 910, and the loss alone. A step has as many tokens whatever the block.",
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


def adamw(rate, length=1):
    """Pretraining by AdamW alone."""
    knobs = dict(optimizer="adamw", embedding_lr_ratio=1.0, learning_rate=rate)
    return Arm(Run(WIKI, length=length, **knobs), over=WIKI)


LEARNING_RATES = Finding(
    number=7,
    name="learning_rates",
    source="B: a learning rate of 1e-3, at the end a tenth of it, is far better than 3e-4 and "
    "1e-4.",
    claim="A learning rate of 1e-3 is far better than 3e-4 and 1e-4 (B).",
    run="Pretraining by AdamW with each, the last rate a tenth.",
    arms={rate: adamw(rate) for rate in ("1e-3", "3e-4", "1e-4")},
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", "1e-3", "3e-4"), Check("bits/char", "1e-3", "1e-4")],
    curve=True,
)

ANY_RATE = Finding(
    number=22,
    name="any_rate",
    source="D: AdamW is indifferent to the learning rate between 1e-5 and 5e-3. (B says the "
    "contrary: finding 7.)",
    claim="AdamW learns alike with any learning rate between 1e-5 and 5e-3 (D).",
    run="Pretraining by AdamW at both ends of this range and between, a quarter of the usual "
    "steps, the last rate a tenth. Alike: within 3 % of 1e-3.",
    differs="A quarter of the usual steps: a low rate has less time.",
    arms={rate: adamw(rate, 1 / 4) for rate in ("5e-3", "1e-3", "1e-5")},
    measures={"bits/char": bits_per_char},
    checks=[Check("bits/char", rate, "1e-3", within=0.03) for rate in ("5e-3", "1e-5")],
    curve=True,
)


def batches_of(size, equal):
    """A batch of `size` blocks: as many blocks in all, or as many steps, as 32 has."""
    length = 8 / size if equal == "blocks" else 8 / 32
    return Arm(Run(WIKI, length=length, batch_size=size), over=WIKI)


BATCHES = Finding(
    number=8,
    name="batches",
    source="B: batches of 8, 16 and 32 with all else equal, also the number of steps, are alike.",
    claim="With equal steps, batches of 8, 16 and 32 blocks do alike (B).",
    run="Pretraining with each, a quarter of the usual steps. Beside it, equal blocks: 8 has four "
    "times the steps of 32. Alike: within 3 %.",
    differs="The run of equal blocks is not B's.",
    arms={
        "8, equal steps": batches_of(8, "steps"),
        "16, equal steps": batches_of(16, "steps"),
        "32, both": batches_of(32, "blocks"),
        "8, equal blocks": batches_of(8, "blocks"),
    },
    measures={"bits/char": bits_per_char},
    checks=[
        Check("bits/char", "16, equal steps", "8, equal steps", within=0.03),
        Check("bits/char", "32, both", "8, equal steps", within=0.03),
    ],
)

NUMBERS = Finding(
    number=9,
    name="numbers",
    source="A: the first sentence of a text is continued well, but numbers such as postal codes "
    "come out wrong.",
    claim="Numbers that follow no rule, such as postal codes, are what the model gets wrong (A).",
    run="The likeliest next token over held-out texts, for tokens with digits and for others.",
    differs="A reads some texts. Here every token with a digit counts, also in numbers that "
    "follow a rule.",
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
    ANY_RATE,
]
