"""What the findings measure: each is measure(lab, arm, seed) → a number, or None where it says
nothing of that arm. Evaluation scripts of the project give the figures; they are run once."""

import json
import re
import statistics

import torch

from findings.experiments import Classes
from minigpt.data.readers import read_entries
from minigpt.evaluation.examples import SEEN, first_sentence, read_texts
from minigpt.evaluation.perplexity import all_windows, text_passages, window_batches
from minigpt.evaluation.rouge import score as rouge
from minigpt.models import checkpoint
from minigpt.models.device import pick_device
from minigpt.training.log import read_runlog
from tools.study import trial_name

# -- over held-out text ----------------------------------------------------------------------------


def _perplexity(lab, arm, seed):
    """evaluations-perplexity.py's figures over the arm's `over`, or what its run was trained on."""
    over = arm.asked.get("over", arm.made_of.data).make(lab)
    path = lab.score(arm, seed, f"perplexity_{over.name}.json")
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}", f"--dataset={over.as_posix()}"]
    lab.once(path, "evaluations-perplexity.py", *words, f"--output={path.as_posix()}")
    return _json(path)


def bits_per_char(lab, arm, seed):
    """Held-out bits per character: texts, or of pairs the answers; over=None: not of this arm."""
    if arm.asked.get("over", arm) is None:
        return None
    return _perplexity(lab, arm, seed)["text"]["bits_per_char"]


def perplexity(lab, arm, seed):
    """Held-out perplexity a token."""
    return _perplexity(lab, arm, seed)["tokens"]["perplexity"]


def token_errors(lab, arm, seed):
    """The share of held-out tokens that are not the one which the run holds likeliest, given the
    text before them: of tokens with a digit in them (`of` "digits"), or of the others."""
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
        at = batch.at[: batch.count]  # on a GPU places that count for nothing follow
        y = batch.y.flatten()[at]
        with torch.inference_mode():
            h = model(batch.x).flatten(0, 1)[at]
            guess = model.logits(h)[..., : tokenizer.n_vocab].argmax(-1)
        wrong.append(guess != y)
        wanted.append(digits[y] == (arm.asked["of"] == "digits"))
    wrong, wanted = torch.cat(wrong), torch.cat(wanted)
    return float(wrong[wanted].float().mean())


def same_ending(lab, arm, seed):
    """How often the run finds the sentence that follows, of four (acc_norm), in held-out texts."""
    data = arm.asked["endings"].make(lab)
    path = lab.score(arm, seed, "endings.json")
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}"]
    words += [f"--input={(data / 'val.jsonl').as_posix()}"]
    words += [f"--task={path.with_suffix('').as_posix()}", f"--output={path.as_posix()}"]
    if limit := lab.scale.counts.get("endings"):
        words.append(f"--limit={limit}")
    lab.once(path, "tools/evaluations-endings.py", *words)
    return _json(path)["acc_norm"]


# -- over what it writes ---------------------------------------------------------------------------


def _answers(lab, arm, seed, texts, name, temperature=0.0):
    """(figures, rows) of evaluations-RougeL.py over `texts`, a path, called `name`."""
    path = lab.score(arm, seed, f"rouge_{name}_{temperature:g}.jsonl")
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}", f"--input={texts}"]
    words += [f"--limit={lab.scale.counts['answers']}", "--show=0"]
    words += [f"--max_new_tokens={lab.scale.counts['new_tokens']}", f"--temperature={temperature}"]
    lab.once(path, "evaluations-RougeL.py", *words, f"--output={path.as_posix()}")
    return _json(path.with_suffix(".json")), _rows(path)


def _held_out(lab, arm):
    """val.jsonl of the arm's `over`, or of what its run was trained on; and a name for it."""
    over = arm.asked.get("over", arm.made_of.data)
    return (over.make(lab) / "val.jsonl").as_posix(), over.name


def rouge_held_out(lab, arm, seed):
    """Rouge-L over characters: answers to held-out questions, or held-out entries continued."""
    figures, _ = _answers(lab, arm, seed, *_held_out(lab, arm))
    return figures["all"]["rouge_l_chars"]["mean"]


def rouge_taught(lab, arm, seed):
    """The same of questions that the run was fine-tuned on."""
    source = arm.made_of.data.source
    figures, _ = _answers(lab, arm, seed, source.make(lab), source.name)
    return figures[SEEN]["rouge_l_chars"]["mean"]


def sureness(lab, arm, seed):
    """How alike (Rouge-L over characters) the answers to taught questions are at temperature 1.5
    and at 0.1."""
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
    """Brackets with nothing in them, in a thousand characters of held-out entries continued."""
    _, rows = _answers(lab, arm, seed, *_held_out(lab, arm), temperature=0.4)
    written = "".join(row["prediction"] + "\n" for row in rows)
    return 1000 * len(EMPTY.findall(written)) / len(written)


def _texts(lab, arm, seed):
    """(figures, rows) of tools/evaluations-repetition.py in the arm's setting, over the beginnings
    of held-out texts, or held-out questions."""
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
    """The share of 4-grams of tokens that stand in the same text already."""
    return _texts(lab, arm, seed)[0]["repeated_4"]


def known(lab, arm, seed):
    """Of three characters in a row, each such sequence of a text counted once, the share that
    stands in the texts which the run was pretrained on: what makes no sense seldom does."""
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
    """The share of test texts that get the right class, by the likeliest label."""
    folder = lab.score(arm, seed, "classification")
    folder.mkdir(exist_ok=True)
    words = [f"--out_dir={arm.made_of.make(lab, seed).as_posix()}"]
    words += [f"--input={Classes('test').make(lab)}", f"--output={folder.as_posix()}"]
    lab.once(folder, "tools/evaluations-classification.py", *words)
    return _json(folder / "classification.json")["readings"]["likelihood, sum"]["accuracy"]


# -- over the log ----------------------------------------------------------------------------------


def _val_losses(lab, arm, seed):
    """The val losses of a run's log, the one before the first step left out."""
    return read_runlog(arm.made_of.make(lab, seed)).val["val_loss"][1:]


def rebound(lab, arm, seed):
    """How far the highest of the second to fourth val losses lies above the lowest before it: nats
    a token, below 0 where the losses only fell."""
    losses = _val_losses(lab, arm, seed)
    return max(losses[i] - min(losses[:i]) for i in range(1, min(4, len(losses))))


def fall(lab, arm, seed):
    """How far the lowest val loss after the fourth lies below the highest of the second to fourth:
    nats a token."""
    losses = _val_losses(lab, arm, seed)
    return max(losses[1:4]) - min(losses[4:])


def rise(lab, arm, seed):
    """How far the last val loss lies above the lowest: nats a token."""
    losses = _val_losses(lab, arm, seed)
    return losses[-1] - min(losses)


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
