"""Rollouts: prompts → answers by the engine → rewards → batches to learn from.

    prompts = Prompts("data/processed_prompts", "train", tokenizer, 128)
    writer = AnswerWriter(model, tokenizer, reward, longest=64)
    answers = writer.write(prompts, [3, 3, 7], seeds=[1, 2, 3])     # Answers, in this order
    batches = Rollouts(order, prompts, writer, settings, …)         # in place of data_utils.Batches
    batch = batches[0]                                              # a RolloutBatch

A phase is the answers that the present weights write for grpo_steps steps. Batch i is a function of
the weights at the beginning of its phase, the seed and i: neither the number of processes nor of
micro-batches changes which answers a step learns from. The answers of a phase are part of the
checkpoint, because a run that resumes within it no longer has those weights.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from data_utils import Batch, Blocks
from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.data.block_format import IS_START, PROMPTS, TARGET
from minigpt.data.prompts import stop_ids
from minigpt.inference.engine import Engine, Request
from minigpt.models.device import autocast
from minigpt.training.objectives.dpo import STEP, target_logprobs

SLOTS, PREFILL = 128, 2048  # answers that the engine writes at once; prompt tokens in a step
CACHE = 2**30  # bytes that the keys and values of those answers may take, about
# What is summed over the answers of a batch, for the metrics; the rewards' parts follow.
SUMS = ("answers", "reward", "groups", "flat", "tokens", "surprise", "cut", "seconds")


# -- prompts ---------------------------------------------------------------------------------------


class Prompts(Blocks):
    """One split of prompts: Blocks, of which each is a prompt and PAD.

    lengths: (n,), tokens of each prompt. records: a dict for each, of {split}.jsonl. answers: how
    many tokens are written after each prompt and how often, (longest, group).
    """

    kind, unit = PROMPTS["kind"], "prompts in blocks"

    def __init__(self, folder, split, tokenizer=None, block_size=None, isolate=True):
        super().__init__(folder, split, tokenizer, block_size, isolate)
        self.lengths = ((self.mask[:, 1:] & IS_START) > 0).argmax(axis=1) + 1
        self.records = self._read_records()
        self.answers = 0, 1

    def _read_records(self):
        path = self.folder / f"{self.split}.jsonl"
        try:
            with open(path, encoding="utf-8") as file:
                records = [parse_json(line) for line in file]
        except (OSError, ValueError) as error:
            records = str(error)
        good = isinstance(records, list) and len(records) == len(self.tokens)
        if not good or not all(isinstance(record, dict) for record in records):
            raise UserError(
                f"{path}: not a record for each of {len(self.tokens)} prompts; run again: "
                f"{self.meta.get('command')}"
            )
        return records

    def of_another_kind(self, meta):
        """See Blocks."""
        return UserError(
            f"{self.folder}: holds no prompts, which --stage=grpo needs; make them: "
            f"python data/prepare_prompts.py --input=PATH --dataset=…"
        )

    @property
    def tokens_per_block(self):
        """See Blocks: the mean of a prompt with its longest answers."""
        longest, group = self.answers
        return round(group * np.minimum(self.lengths + longest, self.block_size).mean())

    def ids(self, row):
        """The tokens of a prompt, a list."""
        return self.tokens[row, : self.lengths[row]].tolist()

    def batch(self, rows):
        """The prompts with these numbers ((B,) int64) as a Batch on the CPU. count: B."""
        return replace(super().batch(rows), count=len(rows))


# -- answers ---------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What the model wrote after a prompt. ids: with the stop id, if it ended by itself (else it is
    cut); logprobs: of each id, as the engine recorded them; score: its reward, a Score."""

    ids: list
    logprobs: list
    text: str
    is_cut: bool
    score: object = None


def slots_for(model):
    """How many answers fit into CACHE at once, 1 to SLOTS."""
    shape = model.config
    keys = (shape.n_kv_head or shape.n_head) * shape.head_dim  # of a token, and as many values
    size = 2 * shape.n_layer * shape.block_size * keys * model.wte.weight.element_size()
    return max(1, min(SLOTS, CACHE // size))


class AnswerWriter:
    """Writes answers with the model as it is, and has them rewarded.

    reward: an object whose scores([(prompt, answer, record), …]) gives a Score for each, with
    `total` and `parts`. longest: tokens of an answer. Answers are drawn at temperature 1 from the
    whole vocabulary: what is learned is the model's own distribution.
    """

    def __init__(self, model, tokenizer, reward, longest):
        self.model, self.tokenizer, self.reward, self.longest = model, tokenizer, reward, longest
        self.engine = Engine(model, tokenizer.n_vocab, slots_for(model), PREFILL)
        self.parts = None  # the names of the reward's parts, from the first answer on

    def write(self, prompts, rows, seeds):
        """An Answer to each of the `rows` of Prompts, each drawn with its seed. UserError where the
        reward fails."""
        requests = []
        for row, seed in zip(rows, seeds, strict=True):
            ids = prompts.ids(row)
            most = min(self.longest, self.engine.block_size - len(ids))
            stops = stop_ids(self.tokenizer)
            requests.append(Request(ids, most, seed=int(seed), stop_ids=stops, logprobs=0))
        was_training = self.model.training
        self.model.eval()
        with torch.autocast(self.engine.device.type, enabled=False):  # the cache is as the weights
            tickets = self.engine.generate(requests)
        self.model.train(was_training)
        answers = [self._answer(ticket) for ticket in tickets]
        items = [
            (prompts.records[row]["prompt"], answer.text, prompts.records[row])
            for row, answer in zip(rows, answers, strict=True)
        ]
        for answer, score in zip(answers, self.reward.scores(items), strict=True):
            answer.score = score
            self.parts = self.parts or list(score.parts)
            if set(score.parts) != set(self.parts):
                raise UserError(
                    f"the reward has the parts {', '.join(score.parts)}, and had "
                    f"{', '.join(self.parts)} before: every answer needs the same ones"
                )
        return answers

    def _answer(self, ticket):
        tokens = [*ticket.tokens, *([ticket.stop] if ticket.stop else [])]
        # A text that is cut may end within a character.
        text = self.tokenizer.decode(ticket.ids).rstrip("\ufffd")
        ids, logprobs = [token.id for token in tokens], [token.logprob for token in tokens]
        return Answer(ids, logprobs, text, ticket.stop is None)

    def sums(self, answers, groups=0, flat=0):
        """What the metrics need of these answers: a value for each of SUMS and of the parts."""
        values = dict(
            answers=len(answers),
            reward=sum(answer.score.total for answer in answers),
            groups=groups,
            flat=flat,
            tokens=sum(len(answer.ids) for answer in answers),
            surprise=-sum(sum(answer.logprobs) for answer in answers),
            cut=sum(answer.is_cut for answer in answers),
            seconds=0.0,
        )
        parts = [sum(answer.score.parts[name] for answer in answers) for name in self.parts or ()]
        return [*(values[name] for name in SUMS), *parts]

    def metrics(self, sums):
        """{name: value} from sums() over all processes; {} where there were no answers.

        reward     the mean, and of each part where there are several
        entropy    of the distribution from which the tokens were drawn, in nats a token, by the
                   mean of their −log p
        length     tokens of an answer
        cut        the share of answers that reached the longest length
        """
        named = dict(zip(SUMS, sums, strict=False))
        n, tokens = named["answers"], max(named["tokens"], 1)
        if not n:
            return {}
        found = dict(reward=named["reward"] / n)
        parts = dict(zip(self.parts or (), sums[len(SUMS) :], strict=False))
        if len(parts) > 1:
            found |= {f"reward_{name}": value / n for name, value in parts.items()}
        found |= dict(entropy=named["surprise"] / tokens, length=tokens / n, cut=named["cut"] / n)
        if named["groups"]:
            found["flat"] = named["flat"] / named["groups"]
        if named["seconds"]:
            found["rollouts"] = n / named["seconds"]
        return found


# -- batches ---------------------------------------------------------------------------------------


@dataclass
class RolloutBatch(Batch):
    """A Batch whose rows are prompts with answers; targets are the answers' tokens. count: its
    rows. rows: the numbers of their prompts.

    logprobs (N,): of the target at each of `target_indices`, when it was drawn. reference (N,): the
    same of the reference model, or None. advantages (count,), of all tokens of an answer; credits
    (N,): what is added for single tokens, or None. sums: of AnswerWriter.sums(), over the answers
    that were left out, too.
    """

    logprobs: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    credits: torch.Tensor | None = None

    @classmethod
    def made(
        cls,
        tokens,
        mask,
        logprobs,
        rows=None,
        reference=None,
        advantages=None,
        sums=None,
        credits=None,
    ):
        """From tensors: tokens (count, T) and mask (count, T); the rest as above."""
        batch = cls.of(tokens.numpy(), mask.numpy(), False, rows)
        own = dict(logprobs=logprobs, reference=reference, advantages=advantages, sums=sums)
        return replace(batch, count=len(tokens), credits=credits, **own)

    def to(self, device):
        """See Batch."""
        batch = super().to(device)
        extra = len(batch.target_indices) - len(self.target_indices)

        def longer(values):
            return None if values is None else F.pad(values, (0, extra)).to(device)

        own = ("logprobs", "reference", "credits")
        return replace(batch, **{name: longer(getattr(self, name)) for name in own})


def rows_of(prompts, rows, answers, pad):
    """(tokens, mask, logprobs) of answers after their prompts: int64 (B, T) and uint8 (B, T)
    without the padding at the end of all rows, float32 (N,)."""
    texts = [prompts.ids(row) + answer.ids for row, answer in zip(rows, answers, strict=True)]
    width = max((-(-len(text) // STEP) * STEP for text in texts), default=STEP)
    tokens = np.full((len(texts), width), pad, np.int64)
    mask = np.zeros(tokens.shape, np.uint8)
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        tokens[i, : len(text)] = text
        mask[i, len(text) - len(answer.ids) : len(text)] = TARGET
    logprobs = np.array([p for answer in answers for p in answer.logprobs], np.float32)
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(logprobs)


def advantages_of(rewards, by_std=False, totals=None):
    """Rewards (groups, answers) → advantages of the same shape: the reward minus the group's mean
    (Shao et al. 2024). by_std: divided by the group's standard deviation, as they do; Liu et al.
    (2025, "Dr. GRPO") leave that out. totals: of which `rewards` are a part; the deviation is
    theirs. float32."""
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if not by_std:
        return advantages
    totals = rewards if totals is None else totals
    return advantages / (totals.std(dim=1, keepdim=True) + 1e-4)


def tokens_at(tokenizer, ids, places):
    """For each of `ids` whether it is a part of one of the characters with the indices `places`."""
    places, at, found = set(places), 0, []
    for k in range(1, len(ids) + 1):
        end = len(tokenizer.decode(ids[:k]).rstrip("\ufffd"))
        if end > at:  # a character of several tokens is there with its last one
            found += [not places.isdisjoint(range(at, end))] * (k - len(found))
            at = end
    return found + [False] * (len(ids) - len(found))


class Rollouts:
    """Batch number i of the run on this process, for i = 0, 1, 2 …; see the module's docstring.

    order: the data_utils.Batches of the prompts, of which the numbers alone are read. reference:
    (model, dtype), whose log-probabilities the batches need, or None.
    """

    def __init__(self, order, prompts, writer, settings, reference=None):
        self.order, self.prompts, self.writer, self.settings = order, prompts, writer, settings
        self.reference = reference
        self.per_phase = settings.grpo_steps * settings.gradient_accumulation_steps
        self._phase, self._parts = None, []  # the arguments of RolloutBatch.made(), of each batch

    def __getitem__(self, i):
        phase, k = divmod(i, self.per_phase)
        if phase != self._phase:
            self._parts, self._phase = self._write(phase), phase
        return self._batch(self._parts[k]).to(self.order.device)

    def _batch(self, parts):
        return RolloutBatch.made(**(parts | dict(rows=parts["rows"].numpy())))

    def _write(self, phase):
        """The answers of a phase, as parts of its batches."""
        began, size, group = time.perf_counter(), self.order.batch_size, self.settings.grpo_group
        rows, seeds = [], []
        for i in range(phase * self.per_phase, (phase + 1) * self.per_phase):
            first = (i * self.order.world + self.order.rank) * size
            for k, row in enumerate(self.order.rows(i)):
                generator = np.random.default_rng([self.settings.seed, first + k])
                rows += [row] * group
                seeds += generator.integers(2**63, size=group).tolist()
        answers = self.writer.write(self.prompts, rows, seeds)
        n = size * group  # answers of a batch
        parts = [
            self._parts_of(rows[at : at + n], answers[at : at + n]) for at in range(0, len(rows), n)
        ]
        seconds = (time.perf_counter() - began) / len(parts)
        for each in parts:
            each["sums"][SUMS.index("seconds")] = seconds
        return parts

    def _parts_of(self, rows, answers):
        """The parts of one batch. Groups in which all answers have the same reward teach nothing
        and are left out (Yu et al. 2025, "DAPO")."""
        group = self.settings.grpo_group
        rewards = torch.tensor([answer.score.total for answer in answers]).view(-1, group)
        is_flat = rewards.amax(dim=1) - rewards.amin(dim=1) < 1e-6  # (groups,)
        kept = (~is_flat).repeat_interleave(group).nonzero()[:, 0].tolist()
        sums = self.writer.sums(answers, len(is_flat), int(is_flat.sum()))
        rows, answers = [rows[i] for i in kept], [answers[i] for i in kept]
        made = rows_of(self.prompts, rows, answers, self.writer.tokenizer.pad)
        parts = dict(zip(("tokens", "mask", "logprobs"), made, strict=True))
        parts["rows"] = torch.tensor(rows, dtype=torch.int64)
        parts |= self._advantages(answers, rewards[~is_flat])
        parts["sums"] = torch.tensor(sums, dtype=torch.float64)
        if self.reference and kept:
            parts["reference"] = self.reference_logprobs(parts)
        return parts

    def _advantages(self, answers, totals):
        """The advantages of answers with the rewards `totals` (groups, group), and credits: a part
        of the reward that depends on a few characters is credited to their tokens alone, because
        all others would learn noise from it."""
        by_std, tokenizer = self.settings.grpo_by_std, self.writer.tokenizer
        rest, credits = totals, None
        for name in sorted({name for answer in answers for name in answer.score.places}):
            located = [answer.score.places[name] for answer in answers]
            values = torch.tensor([value for value, _ in located]).view_as(totals)
            rest = rest - values
            of_answers = advantages_of(values, by_std, totals).flatten().tolist()
            found = [
                advantage * is_there
                for answer, advantage, (_, places) in zip(answers, of_answers, located, strict=True)
                for is_there in tokens_at(tokenizer, answer.ids, places)
            ]
            credits = torch.tensor(found) + (0 if credits is None else credits)
        return dict(advantages=advantages_of(rest, by_std, totals).flatten(), credits=credits)

    @torch.no_grad()
    def reference_logprobs(self, parts):
        """(N,) float32 on the CPU."""
        model, dtype = self.reference
        batch = self._batch(parts).to(self.order.device)
        with autocast(self.order.device, dtype):
            found = target_logprobs(model, batch, self.writer.engine.n_vocab)
        return found[: len(parts["logprobs"])].float().cpu()

    # -- checkpoints -------------------------------------------------------------------------------

    def state(self):
        """What a resumed run needs: tensors and plain values."""
        return dict(phase=self._phase, parts=self._parts, names=self.writer.parts)

    def restore(self, state):
        """Continue from a state()."""
        self._phase, self._parts = state["phase"], state["parts"]
        self.writer.parts = state["names"]
