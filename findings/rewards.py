"""Findings 24 and 25: what a model learns from a reward.

python findings/run.py rule_by_reward cheated_reward
"""

from findings.claims import Arm, Check, Finding
from findings.experiments import Run
from findings.measures import characters, right_sums
from findings.runs import ADDED, ADDITIONS, PROMPTS

RIGHT, LENGTH = "right sums, temperature 1", "characters of an answer"
BEFORE = Arm(ADDED, over=PROMPTS)
BY_LENGTH = Run(PROMPTS, ADDED, reward="findings/longer.py")

RULE_BY_REWARD = Finding(
    number=24,
    name="rule_by_reward",
    source="E: a reward that a program checks teaches what examples did not.",
    claim="After fine-tuning, a reward teaches more than as many minutes of further examples (E).",
    run="Additions of two and three digits: fine-tuning on examples, then learning from exact "
    "matches; or twice as many steps of fine-tuning. Answers at temperature 1.",
    differs="E trains language models of billions of weights on mathematics.",
    arms={
        "examples": BEFORE,
        "twice the examples": Arm(Run(ADDITIONS, length=2), over=PROMPTS),
        "then a reward": Arm(Run(PROMPTS, ADDED), over=PROMPTS),
    },
    measures={RIGHT: right_sums},
    checks=[
        Check(RIGHT, "examples", "then a reward"),
        Check(RIGHT, "twice the examples", "then a reward"),
    ],
)

CHEATED_REWARD = Finding(
    number=25,
    name="cheated_reward",
    source="E: a model learns what is rewarded, not what was meant.",
    claim="A reward that can be cheated is cheated: where only length is rewarded, answers get "
    "longer and wrong (E).",
    run="The same model learns from a reward for long answers, up to six characters; a sum has two "
    "to four.",
    differs="E's rewards are less crude.",
    arms={"before": BEFORE, "length rewarded": Arm(BY_LENGTH, over=PROMPTS)},
    measures={LENGTH: characters, RIGHT: right_sums},
    checks=[
        Check(LENGTH, "before", "length rewarded"),
        Check(RIGHT, "length rewarded", "before"),
    ],
)

FINDINGS = [RULE_BY_REWARD, CHEATED_REWARD]
