"""Preferences from question–answer pairs, with rejected answers that are known to be wrong.

records = make_preferences([Pair("1", "谁？", "我自己。"), …])   # data/prepare_dpo.py --from_qa
"""

import numpy as np


def make_preferences(pairs, seed=0):
    """Pairs → records of the format "preference", up to three for each pair.

    The right answer is chosen. Rejected are, by `kind`, the answer to `another` question, the first
    half of the answer (`cut`), and that half three times (`loop`); one that is empty or equal to
    the right answer is left out. A pair without an id gets the key by which data/prepare_sft.py
    splits it, so that both hold out the same pairs.
    """
    generator = np.random.default_rng(seed)
    records = []
    for pair in pairs:
        id_ = pair.question + pair.answer if pair.id is None else pair.id
        half = pair.answer[: len(pair.answer) // 2].strip()
        rejected = {
            "another": pairs[generator.integers(len(pairs))].answer,
            "cut": half,
            "loop": 3 * half,
        }
        records += [
            dict(id=id_, prompt=pair.question, chosen=pair.answer, rejected=text, kind=kind)
            for kind, text in rejected.items()
            if text and text != pair.answer
        ]
    return records
