"""Prompts that are made, with answers that a program knows.

records = make_sums(20_000)     # [{"id": "37+458", "prompt": "37+458=", "answer": "495"}, …]
"""

import numpy as np


def make_sums(count, seed=0):
    """`count` different additions of two numbers of two or three digits (there are 990 · 990), as
    records for data/prepare_prompts.py and data/prepare_sft.py. How many digits a number has is
    drawn first, so that two-digit numbers are not rare."""
    generator = np.random.default_rng(seed)
    lows, highs = np.array([10, 100]), np.array([100, 1000])
    found = {}
    while len(found) < count:
        digits = generator.integers(2, size=(count, 2))
        numbers = generator.integers(lows[digits], highs[digits])  # (count, 2)
        found.update(dict.fromkeys(map(tuple, numbers.tolist())))
    # By its id a sum is held out by both scripts, or by none.
    return [
        {"id": f"{a}+{b}", "prompt": f"{a}+{b}=", "answer": f"{a + b}"}
        for a, b in list(found)[:count]
    ]
