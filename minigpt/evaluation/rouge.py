"""ROUGE-L: how much of a reference is in a prediction, in the reference's order.

F1 of the longest common subsequence (Lin 2004), once over words (jieba) and once over characters,
without white space. A prediction of punctuation alone scores 0. The rouge-chinese package computes
it; its table takes a gigabyte for two texts of 3,000 characters, so longer texts are scored here,
with the same result.
"""

import functools
import re
import warnings
from collections import defaultdict

import numpy as np


@functools.cache
def _jieba():
    """jieba's tokenizer, loaded without its log lines and without its cache in the system's
    temporary folder, which may not be writable or may be somebody else's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its old regular expressions, its use of pkg_resources
        import jieba
    cutter = jieba.Tokenizer()
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter


MOST_CELLS = 250_000  # of rouge-chinese's table, some 100 bytes each


@functools.cache
def _scorer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_chinese import Rouge
    return Rouge(metrics=["rouge-l"])


# jieba segments one block at a time, in quadratic time if no word of its dictionary occurs in it.
# Longer blocks (no natural text has them) are therefore split first.
_LONGEST_BLOCK = 2000
_IN_BLOCK = r"\u4e00-\u9fd5a-zA-Z0-9+#&._%\-"
_BLOCKS = re.compile(f"[{_IN_BLOCK}]{{1,{_LONGEST_BLOCK}}}|[^{_IN_BLOCK}]+")


def words(text):
    """The words of `text` by jieba, without white space."""
    blocks = _BLOCKS.findall(text)
    return [word for block in blocks for word in _jieba().lcut(block) if word.strip()]


def characters(text):
    """The characters of `text`, without white space."""
    return [character for character in text if character.strip()]


def rouge_l(prediction, reference):
    """F1 (0 … 1) of two lists of words or characters; 0 where either is empty, and where the
    prediction is punctuation alone and the reference is not."""
    if not prediction or not reference:
        return 0.0
    if has_content(reference) and not has_content(prediction):
        return 0.0
    if len(prediction) * len(reference) <= MOST_CELLS:
        (score,) = _scorer().get_scores([" ".join(prediction)], [" ".join(reference)])
        return score["rouge-l"]["f"]
    common = common_length(prediction, reference)
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * (precision * recall / (precision + recall + 1e-8))  # as rouge-chinese rounds it


def has_content(items):
    """Whether a list of words or characters has a letter, a digit or a character of a script: not
    only punctuation and symbols."""
    return any(character.isalnum() for item in items for character in item)


def common_length(first, second):
    """The length of the longest common subsequence of two lists.

    The bits of one integer are a row of the dynamic-programming table (Hyyrö 2004): two texts of
    100,000 characters take a second and no memory; the table itself would have 10 billion cells.
    """
    first, second = sorted((first, second), key=len)
    positions = defaultdict(int)  # of each item in `first`, as bits
    for i, item in enumerate(first):
        positions[item] |= 1 << i
    every = (1 << len(first)) - 1
    row = every  # where a bit is 0 the length grows by one
    for item in second:
        found = row & positions.get(item, 0)
        row = ((row + found) | (row - found)) & every
    return len(first) - row.bit_count()


def score(prediction, reference):
    """The scores of one prediction: {"rouge_l_words", "rouge_l_chars", "exact"}."""
    return dict(
        rouge_l_words=rouge_l(words(prediction), words(reference)),
        rouge_l_chars=rouge_l(characters(prediction), characters(reference)),
        exact=prediction.strip() == reference.strip() != "",
    )


def bootstrap_mean(values, seed=0, rounds=2000):
    """{"mean", "low", "high"}: the mean of at least one value and its 95 % percentile interval
    (Efron 1979): means of `rounds` samples drawn from the values with replacement."""
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(rounds)]
    low, high = np.percentile(means, [2.5, 97.5])
    return dict(mean=float(values.mean()), low=float(low), high=float(high))


def summary(rows, seed=0):
    """The means over at least one row {"prediction", "reference", and the keys of score()}: ROUGE-L
    with its interval (bootstrap_mean), the fraction of exact matches, and the characters of all
    predictions divided by those of all references."""
    written = sum(len(row["prediction"]) for row in rows)
    wanted = sum(len(row["reference"]) for row in rows)
    return dict(
        count=len(rows),
        rouge_l_words=bootstrap_mean([row["rouge_l_words"] for row in rows], seed),
        rouge_l_chars=bootstrap_mean([row["rouge_l_chars"] for row in rows], seed),
        exact_match=sum(row["exact"] for row in rows) / len(rows),
        length_ratio=written / wanted if wanted else 0.0,
    )
