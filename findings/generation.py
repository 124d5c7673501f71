"""Findings 17 to 21: generation and adaptation. D is the report on all stages of a 26M model.

python findings/run.py temperature top_p
python findings/run.py classification --input=FOLDER        # with bbc/bbc_news.csv
"""

from findings.claims import Arm, Check, Finding
from findings.experiments import Count, Data, Run, Source
from findings.measures import accuracy, known, perplexity, recurring, repeated
from findings.runs import BASE, LABELS, NEWS_BASE, QA, SFT, VOCABULARY

D_SHARE, DISTINCT = "4-grams that occur more than once", "1 − distinct 4-grams"
REPETITION = {D_SHARE: recurring, DISTINCT: repeated}

TEMPERATURE = Finding(
    number=17,
    name="temperature",
    source="D: at temperature 0.3 a share of 0.66 of the 4-grams is repeated, at 0.85 a share of "
    "0.36; at 1.7 little is, and the text makes no sense.",
    claim="A low temperature repeats itself (D: a share of 0.66 at 0.3, 0.36 at 0.85), a high one "
    "makes no sense.",
    run="Eight held-out texts begun, four continuations each, at three temperatures. Sense: three "
    "characters in a row that stand in the pretraining texts.",
    differs="D asks eight questions; here eight texts are begun. D's share counts every "
    "occurrence of a 4-gram that occurs more than once; 1 − distinct is beside it.",
    arms={f"{t:g}": Arm(BASE, temperature=t) for t in (0.3, 0.85, 1.7)},
    measures=REPETITION | {"known 3-grams": known},
    checks=[
        Check(D_SHARE, "0.85", "0.3"),
        Check("known 3-grams", "1.7", "0.85"),
    ],
)

TOP_P = Finding(
    number=18,
    name="top_p",
    source="D: a low top_p repeats more than a high one, but from 0.55 down to 0.3 the share "
    "becomes less again (one model).",
    claim="A low top_p repeats itself more than a high one, but 0.3 less than 0.55 (D).",
    run="Eight held-out texts begun, four continuations each, at temperature 0.85.",
    differs="D asks eight questions; here eight texts are begun. The share is D's; 1 − distinct is "
    "beside it.",
    arms={f"{p:g}": Arm(BASE, temperature=0.85, top_p=p) for p in (0.3, 0.55, 1.0)},
    measures=REPETITION,
    checks=[
        Check(D_SHARE, "1", "0.55"),
        Check(D_SHARE, "1", "0.3"),
        Check(D_SHARE, "0.3", "0.55"),
    ],
)


def lora(count):
    knobs = dict(lora_rank=Count(count), lora_alpha=32.0, learning_rate=4e-3)
    return Arm(Run(LABELS, NEWS_BASE, length=2, **knobs))


UPPER = dict(freeze_layers=Count("half"), freeze_embeddings=True)

CLASSIFICATION = Finding(
    number=19,
    name="classification",
    source="D: full fine-tuning reaches 79 %, the upper half 67 %, LoRA nothing below rank 1,024 "
    "and 40 % there.",
    claim="On classification all weights learn better than the upper half, that better than LoRA, "
    "and LoRA needs a high rank on a small model (D: 79 %, 67 %, 40 %).",
    run="News in five classes: the recipes config/bbc_sft.py, bbc_upper.py and bbc_lora.py; what "
    "learns in part has twice the steps.",
    differs="The base is smaller than D's, the ranks as well: 4 and 64 (gpu: 16 and 512).",
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
    source="D: on a base of the other language fine-tuning stays at chance (0.2).",
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
    knobs = dict(dpo_beta=beta, learning_rate=rate, guard_dataset=None)
    return Arm(Run(PREFERENCES, SFT, **knobs), over=QA, temperature=0.3)


DPO = Finding(
    number=21,
    name="dpo",
    source="D: DPO (learning rate 1e-7, one epoch) makes answers friendlier, but language and "
    "above all code get worse: the model forgets.",
    claim="DPO that is too strong forgets: perplexity and repetition rise with the learning rate, "
    "and as β falls (D).",
    run="Right answers against spoilt ones, weakly and strongly; over held-out answers. A third of "
    "the spoilt ones repeat themselves, so that DPO also learns not to.",
    differs="D's rate is far lower. Perplexity and repetition stand for language; code is not "
    "tested.",
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
