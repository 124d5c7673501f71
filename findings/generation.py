"""Findings 17 to 21: generation and adaptation. D is the report on all stages of a 26M model.

python findings/run.py temperature top_p
python findings/run.py classification --input=FOLDER        # with bbc/bbc_news.csv
"""

from findings.experiments import Arm, Check, Count, Data, Finding, Run, Source
from findings.measures import accuracy, known, perplexity, repeated
from findings.runs import BASE, LABELS, NEWS_BASE, QA, SFT, VOCABULARY

TEMPERATURE = Finding(
    number=17,
    name="temperature",
    claim="A low temperature repeats itself (D: a share of 0.66 at 0.3, 0.36 at 0.85), a high one "
    "makes no sense.",
    run="Eight held-out texts begun, four continuations each, at three temperatures. Sense: three "
    "characters in a row that stand in the pretraining texts.",
    arms={f"{t:g}": Arm(BASE, temperature=t) for t in (0.3, 0.85, 1.7)},
    measures={"repeated 4-grams": repeated, "known 3-grams": known},
    checks=[
        Check("repeated 4-grams", "0.85", "0.3"),
        Check("known 3-grams", "1.7", "0.85"),
    ],
)

TOP_P = Finding(
    number=18,
    name="top_p",
    claim="A smaller top_p repeats itself more (D: 0.3 than 0.55).",
    run="The same at temperature 0.85.",
    arms={f"{p:g}": Arm(BASE, temperature=0.85, top_p=p) for p in (0.3, 0.55, 1.0)},
    measures={"repeated 4-grams": repeated},
    checks=[
        Check("repeated 4-grams", "0.55", "0.3"),
        Check("repeated 4-grams", "1", "0.55"),
    ],
)


def lora(count):
    knobs = dict(lora_rank=Count(count), lora_alpha=32.0, learning_rate=4e-3)
    return Arm(Run(LABELS, NEWS_BASE, length=2, **knobs))


UPPER = dict(freeze_layers=Count("half"), freeze_embeddings=True)

CLASSIFICATION = Finding(
    number=19,
    name="classification",
    claim="On classification all weights learn better than the upper half, that better than LoRA, "
    "and LoRA needs a high rank on a small model (D: 79 %, 67 %, 40 %).",
    run="News in five classes: the recipes config/bbc_sft.py, bbc_upper.py and bbc_lora.py; what "
    "learns in part has twice the steps.",
    arms={
        "all weights": Arm(Run(LABELS, NEWS_BASE)),
        "upper half": Arm(Run(LABELS, NEWS_BASE, length=2, **UPPER)),
        "LoRA, low rank": lora("low_rank"),
        "LoRA, high rank": lora("high_rank"),
    },
    measures={"accuracy": accuracy},
    checks=[
        Check("accuracy", "upper half", "all weights"),
        Check("accuracy", "LoRA, high rank", "upper half"),
        Check("accuracy", "LoRA, low rank", "LoRA, high rank"),
    ],
)

CHINESE = Run(Data("bbc", Source("wiki"), tokenizer=VOCABULARY))

OTHER_LANGUAGE = Finding(
    number=20,
    name="other_language",
    claim="On a base of another language a task is not learned (D: 0.2, which is chance).",
    run="English news in five classes on bases of Chinese and of English text that are alike in "
    "all else. Chance: within a quarter of 0.2.",
    arms={
        "Chinese base": Arm(Run(LABELS, CHINESE)),
        "English base": Arm(Run(LABELS, NEWS_BASE)),
    },
    measures={"accuracy": accuracy},
    checks=[
        Check("accuracy", "Chinese base", "English base"),
        Check("accuracy", "Chinese base", 0.2, within=0.25),
    ],
)

PREFERENCES = Data("dpo", Source("qa", count="few_pairs"))


def preferring(beta, rate):
    knobs = dict(dpo_beta=beta, learning_rate=rate, dpo_guard_dataset=None)
    return Arm(Run(PREFERENCES, SFT, **knobs), over=QA, temperature=0.3)


DPO = Finding(
    number=21,
    name="dpo",
    claim="DPO that is too strong forgets: perplexity and repetition rise with the learning rate, "
    "and as β falls (D).",
    run="Right answers against spoilt ones, weakly and strongly; over held-out answers. A third of "
    "the spoilt ones repeat themselves, so that DPO also learns not to.",
    arms={
        "before": Arm(SFT, over=QA, temperature=0.3),
        "β 0.1, lr 2e-5": preferring(0.1, 2e-5),
        "β 0.1, lr 1e-3": preferring(0.1, 1e-3),
        "β 0.01, lr 1e-3": preferring(0.01, 1e-3),
    },
    measures={"perplexity": perplexity, "repeated 4-grams": repeated},
    checks=[
        Check("perplexity", "β 0.1, lr 2e-5", "β 0.1, lr 1e-3"),
        Check("perplexity", "β 0.1, lr 1e-3", "β 0.01, lr 1e-3"),
        Check("repeated 4-grams", "before", "β 0.01, lr 1e-3"),
    ],
)

FINDINGS = [TEMPERATURE, TOP_P, CLASSIFICATION, OTHER_LANGUAGE, DPO]
