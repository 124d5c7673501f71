"""Rouge-L: how much of a reference a prediction says, in the reference's order.

F1 of the longest common subsequence (Lin 2004), scored by rouge-chinese, once over words as jieba
cuts them and once over single characters. Blanks are never compared.
"""

import functools
import warnings

import numpy as np


@functools.cache
def _jieba():
    """jieba's word cutter, loaded without its log lines and without its cache in the system's
    temporary folder, which need not be writable and which others may have written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its old regular expressions, its use of pkg_resources
        import jieba
    cutter = jieba.Tokenizer()
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter


@functools.cache
def _scorer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_chinese import Rouge
    return Rouge(metrics=["rouge-l"])


def words(text):
    """The words of `text` as jieba cuts it, without blanks."""
    return [word for word in _jieba().lcut(text) if word.strip()]


def characters(text):
    """The characters of `text`, without blanks."""
    return [character for character in text if character.strip()]


def rouge_l(prediction, reference):
    """F1 (0 … 1) of two lists of words or characters; 0 where either is empty, which
    rouge-chinese itself refuses."""
    if not prediction or not reference:
        return 0.0
    (score,) = _scorer().get_scores([" ".join(prediction)], [" ".join(reference)])
    return score["rouge-l"]["f"]


def score(prediction, reference):
    """One prediction's figures: {"rouge_l_words", "rouge_l_chars", "exact"}."""
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
    """The figures of at least one row {"prediction", "reference", and what score() gave}: Rouge-L
    as bootstrap_mean gives it, the share of exact matches, and the characters of all predictions
    over those of all references."""
    written = sum(len(row["prediction"]) for row in rows)
    wanted = sum(len(row["reference"]) for row in rows)
    return dict(
        count=len(rows),
        rouge_l_words=bootstrap_mean([row["rouge_l_words"] for row in rows], seed),
        rouge_l_chars=bootstrap_mean([row["rouge_l_chars"] for row in rows], seed),
        exact_match=sum(row["exact"] for row in rows) / len(rows),
        length_ratio=written / wanted if wanted else 0.0,
    )
