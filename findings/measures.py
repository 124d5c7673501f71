"""The measures of the findings: measure(lab, arm, seed) → a number, or None if it does not apply to
the arm. The evaluation scripts of the project compute them, once."""

import json
import re
import statistics

import torch

from findings.experiments import Classes
from minigpt.data.pipeline import read_entries
from minigpt.evaluation.examples import SEEN, first_sentence, read_texts
from minigpt.evaluation.perplexity import all_windows, text_passages, window_batches
from minigpt.evaluation.rouge import score as rouge
from minigpt.models import checkpoint
from minigpt.models.device import pick_device
from minigpt.training.log import read_runlog
from tools.study import trial_name

# -- over held-out text ----------------------------------------------------------------------------


def _perplexity(lab, arm, seed):
    """The JSON of evaluations-perplexity.py over the arm's `over`, or its run's own dataset."""
    over = arm.asked.get("over", arm.made_of.data).make(lab)
    path = lab.score(arm, seed, f"perplexity_{over.name}.json")
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}", f"--dataset={over.as_posix()}"]
    lab.once(path, "evaluations-perplexity.py", *words, f"--output={path.as_posix()}")
    return _json(path)


def bits_per_char(lab, arm, seed):
    """Held-out bits per character, of texts or of answers; over=None: not for this arm."""
    if arm.asked.get("over", arm) is None:
        return None
    return _perplexity(lab, arm, seed)["text"]["bits_per_char"]


def perplexity(lab, arm, seed):
    """Held-out perplexity per token."""
    return _perplexity(lab, arm, seed)["tokens"]["perplexity"]


def token_errors(lab, arm, seed):
    """The fraction of held-out tokens that are not the most likely next token: of tokens with a
    digit (`of` "digits"), or of the others."""
    device = pick_device("auto")
    trained = checkpoint.load(arm.made_of.make(lab, seed), device)
    texts = read_texts(str(arm.made_of.data.make(lab) / "val.jsonl"))
    texts = texts[: lab.scale.counts.get("error_texts")]
    tokenizer, model = trained.tokenizer, trained.model.eval()
    digits = torch.tensor(
        [any(c.isdecimal() for c in tokenizer.decode([i])) for i in range(tokenizer.n_vocab)],
        device=device,
    )
    passages = text_passages(tokenizer, texts)
    wrong, wanted = [], []
    for batch in window_batches(passages, all_windows(passages, model.config.block_size), 8):
        batch = batch.to(device)
        at = batch.target_indices[: batch.count]  # on a GPU it is padded
        y = batch.y.flatten()[at]
        with torch.inference_mode():
            h = model(batch.x).flatten(0, 1)[at]
            guess = model.logits(h)[..., : tokenizer.n_vocab].argmax(-1)
        wrong.append(guess != y)
        wanted.append(digits[y] == (arm.asked["of"] == "digits"))
    wrong, wanted = torch.cat(wrong), torch.cat(wanted)
    return float(wrong[wanted].float().mean())


def same_ending(lab, arm, seed):
    """Accuracy (acc_norm) of choosing the next sentence among four, in held-out texts."""
    data = arm.asked["endings"].make(lab)
    path = lab.score(arm, seed, "endings.json")
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}"]
    words += [f"--input={(data / 'val.jsonl').as_posix()}"]
    words += [f"--task={path.with_suffix('').as_posix()}", f"--output={path.as_posix()}"]
    if limit := lab.scale.counts.get("endings"):
        words.append(f"--limit={limit}")
    lab.once(path, "tools/evaluations-endings.py", *words)
    return _json(path)["acc_norm"]


# -- over generated text ---------------------------------------------------------------------------


def _answers(lab, arm, seed, texts, name, temperature=0.0, limit=None, most=None):
    """(figures, rows) of evaluations-RougeL.py over the file `texts`, called `name`. limit: how
    many questions; most: tokens of an answer; None: as the scale has it."""
    path = lab.score(arm, seed, f"rouge_{name}_{temperature:g}.jsonl")
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}", f"--input={texts}"]
    words += [f"--limit={limit or lab.scale.counts['answers']}", "--show=0"]
    words += [f"--max_new_tokens={most or lab.scale.counts['new_tokens']}"]
    words += [f"--temperature={temperature}"]
    lab.once(path, "evaluations-RougeL.py", *words, f"--output={path.as_posix()}")
    return _json(path.with_suffix(".json")), _rows(path)


def _sums(lab, arm, seed):
    """(figures, rows) of answers to held-out sums, as many at each scale, at temperature 1."""
    texts, name = _held_out(lab, arm)
    return _answers(lab, arm, seed, texts, name, 1.0, lab.scale.counts["sums_asked"], 8)


def right_sums(lab, arm, seed):
    """The share of right answers."""
    return _sums(lab, arm, seed)[0]["all"]["exact_match"]


def characters(lab, arm, seed):
    """The mean number of characters of the answers."""
    return statistics.mean(len(row["prediction"]) for row in _sums(lab, arm, seed)[1])


def _held_out(lab, arm):
    """(val.jsonl of the arm's `over` or its run's own dataset, a name for it)."""
    over = arm.asked.get("over", arm.made_of.data)
    return (over.make(lab) / "val.jsonl").as_posix(), over.name


def rouge_held_out(lab, arm, seed):
    """Rouge-L over characters, of answers to held-out questions or continued held-out entries."""
    figures, _ = _answers(lab, arm, seed, *_held_out(lab, arm))
    return figures["all"]["rouge_l_chars"]["mean"]


def rouge_taught(lab, arm, seed):
    """The same for questions that the run was fine-tuned on."""
    source = arm.made_of.data.source
    figures, _ = _answers(lab, arm, seed, source.make(lab), source.name)
    return figures[SEEN]["rouge_l_chars"]["mean"]


def sureness(lab, arm, seed):
    """Similarity (Rouge-L over characters) of the answers at temperature 1.5 and at 0.1, to
    questions that the run was fine-tuned on."""
    source = arm.made_of.data.source
    cold, hot = (
        [
            row["prediction"]
            for row in _answers(lab, arm, seed, source.make(lab), source.name, temperature)[1]
            if row["standing"] == SEEN
        ]
        for temperature in (0.1, 1.5)
    )
    alike = [rouge(b, a)["rouge_l_chars"] for a, b in zip(cold, hot, strict=True)]
    return statistics.mean(alike)


EMPTY = re.compile(r"[（(][\s，,、；;：:]*[）)]")


def empty_brackets(lab, arm, seed):
    """Empty brackets per thousand characters generated after held-out beginnings."""
    _, rows = _answers(lab, arm, seed, *_held_out(lab, arm), temperature=0.4)
    written = "".join(row["prediction"] + "\n" for row in rows)
    return 1000 * len(EMPTY.findall(written)) / len(written)


def _texts(lab, arm, seed):
    """(figures, rows) of tools/evaluations-repetition.py with the arm's temperature and top_p, over
    the beginnings of held-out texts, or held-out questions."""
    texts, name = _held_out(lab, arm)
    starts = lab.folder / "sources" / f"starts_{name}.txt"
    with lab.locked(starts):
        if not starts.exists():
            rows = _rows(texts)[: lab.scale.counts["starts"]]
            lines = [row.get("question") or first_sentence(row["text"])[0] for row in rows]
            starts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    knobs = {k: arm.asked[k] for k in ("temperature", "top_p") if k in arm.asked}
    folder = lab.score(arm, seed, f"texts_{trial_name(knobs)}")
    words = [f"--{knob}={value:g}" for knob, value in knobs.items()]
    words += [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}"]
    words += [f"--questions={starts.as_posix()}", f"--seeds={lab.scale.counts['texts_each']}"]
    words += [f"--max_new_tokens={lab.scale.counts['new_tokens']}", f"--output={folder.as_posix()}"]
    folder.mkdir(exist_ok=True)
    lab.once(folder, "tools/evaluations-repetition.py", *words)
    (cell,) = _json(folder / "repetition.json")["cells"]
    return cell, _rows(folder / "repetition.jsonl")


def repeated(lab, arm, seed):
    """The fraction of token 4-grams that occur earlier in the same text."""
    return _texts(lab, arm, seed)[0]["repeated_4"]


def recurring(lab, arm, seed):
    """The fraction of token 4-grams that occur more than once in the same text."""
    return _texts(lab, arm, seed)[0]["recurring_4"]


def known(lab, arm, seed):
    """The fraction of distinct character 3-grams of a text that occur in the pretraining texts:
    low where the text makes no sense."""
    _, rows = _texts(lab, arm, seed)
    held_out = {row["text"] for row in _rows(arm.made_of.data.make(lab) / "val.jsonl")}
    read = set()
    for entry in read_entries(arm.made_of.data.source.make(lab)):
        if entry.text not in held_out:
            read |= _triples(entry.text)
    written = [triple for row in rows for triple in _triples(row["text"])]
    return sum(triple in read for triple in written) / max(1, len(written))


def _triples(text):
    return {text[i : i + 3] for i in range(len(text) - 2)}


def accuracy(lab, arm, seed):
    """The accuracy on the test texts, by the most likely label."""
    folder = lab.score(arm, seed, "classification")
    folder.mkdir(exist_ok=True)
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}"]
    words += [f"--input={Classes('test').make(lab)}", f"--output={folder.as_posix()}"]
    lab.once(folder, "tools/evaluations-classification.py", *words)
    return _json(folder / "classification.json")["readings"]["likelihood, sum"]["accuracy"]


# -- over the log ----------------------------------------------------------------------------------


def _val_losses(lab, arm, seed):
    """The val losses of a run's log without the one before the first step."""
    return read_runlog(arm.made_of.make(lab, seed)).val["val_loss"][1:]


def rebound(lab, arm, seed):
    """How far one of the second to fourth val losses is above the lowest before it, at most: nats
    per token; negative if the losses only fell."""
    losses = _val_losses(lab, arm, seed)
    return max(losses[i] - min(losses[:i]) for i in range(1, min(4, len(losses))))


def fall(lab, arm, seed):
    """How far the lowest val loss after the fourth is below the highest of the second to fourth:
    nats per token."""
    losses = _val_losses(lab, arm, seed)
    return max(losses[1:4]) - min(losses[4:])


def rise(lab, arm, seed):
    """How far the last val loss is above the lowest: nats per token."""
    losses = _val_losses(lab, arm, seed)
    return losses[-1] - min(losses)


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
