"""TF-IDF and logistic regression on a classification task, beside a language model's accuracy.

    pip install scikit-learn
    python bench/tfidf.py --input=data/bbc/test.jsonl

--input is the test.jsonl that data/prepare_classes.py writes, with train.jsonl and task.json beside
it. The classifier knows words (in Chinese: characters and pairs of them), not their order. It reads
each text twice: as much as tools/evaluations-classification.py shows to the model, and all of it.
"""

import pathlib
import sys
from pathlib import Path

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = ""  # test.jsonl of data/prepare_classes.py


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table
from minigpt.evaluation.classification import read_labelled, read_task, scores


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    path = Path(settings.input)
    task = read_task(path.parent)
    train = read_labelled(path.with_name("train.jsonl"), task.labels)
    test = read_labelled(path, task.labels)
    shown_train = [row._replace(text=task.question(row.text)) for row in train]
    found = {
        "as shown": tfidf_predict(shown_train, [task.question(row.text) for row in test]),
        "whole text": tfidf_predict(train, [row.text for row in test]),
    }
    rows = []
    for name, labels in found.items():
        each = scores([row.label for row in test], labels, task.labels)
        interval = f"[{each['low']:.1%}, {each['high']:.1%}]"
        rows.append([name, each["count"], f"{each['accuracy']:.1%} {interval}"])
        rows[-1].append(f"{each['macro_f1']:.3f}")
    print(table(["TF-IDF", "texts", "accuracy", "macro F1"], rows))


def tfidf_predict(train, texts):
    """The labels that logistic regression over TF-IDF weights, learned from Labelled texts, gives
    `texts`. UserError if scikit-learn is not installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError("first, pip install scikit-learn") from None
    letters = "".join(row.text[:1000] for row in train)
    chinese = 2 * sum(map(str.isascii, letters)) < len(letters)  # it has no blanks between words
    units = dict(analyzer="char", ngram_range=(1, 2)) if chinese else {}
    classifier = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, **units), LogisticRegression(max_iter=1000)
    )
    classifier.fit([row.text for row in train], [row.label for row in train])
    return [str(label) for label in classifier.predict(texts)]


if __name__ == "__main__":
    run(main)
