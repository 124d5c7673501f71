"""GRPO (Shao et al. 2024): learn from a reward, by comparing several answers to each prompt.

    objective, metadata = make_grpo(settings, parent, model, tokenizer, data, dtype, distributed,
                                    resumed, reward)
    loss, count = objective(model, batch)       # batch: a RolloutBatch; count: its answers

An answer's advantage A is its reward minus the mean of its group. Of each of its tokens,

    ρ = π(token) / π when it was drawn        the importance weight, by the engine's own record
    loss = −min(ρ A, clip(ρ, 1 − grpo_clip, 1 + grpo_clip_high) A) + grpo_beta · KL

(A part of the reward that depends on a few characters, such as a rhyme, is credited to their tokens
alone: rollouts.py.) It is summed over the tokens and divided by the constant grpo_tokens, then by
the number of answers. So a long answer counts as much for each of its tokens as a short one (Dr.
GRPO: Liu et al. 2025); with grpo_by_length the loss is the mean over the answer's tokens. A higher
clip above (clip-higher) and leaving out groups without a difference are DAPO's (Yu et al. 2025).
KL: from the reference model, the run in init_from, by ρ (r − 1 − log r) with r = π_reference / π
(Schulman 2020, "k3"; with ρ its gradient is unbiased: DeepSeek-AI 2025, V3.2).
"""

import copy

import numpy as np
import torch

from minigpt.models.device import autocast
from minigpt.tokenizer.chat_template import from_json
from minigpt.training.objectives.dpo import (
    check_prompt_format,
    load_reference,
    reference_metadata,
    row_sums,
    target_logprobs,
)
from minigpt.training.objectives.next_token import BatchSums, Objective
from minigpt.training.objectives.rollouts import (
    SUMS,
    AnswerWriter,
    RolloutBatch,
    Rollouts,
    rows_of,
)

SHOWN = 4  # samples with their rewards at an evaluation


class GRPO(Objective):
    """The objective, over answers. settings: with the grpo_ settings. writer: the AnswerWriter
    whose answers it gets. held_out: an Objective."""

    def __init__(self, settings, writer, held_out=None):
        self.settings, self.writer, self._held_out = settings, writer, held_out
        self._sums = None  # for metrics()

    @property
    def held_out(self):
        """See Objective: the mean reward of held-out prompts."""
        return self._held_out

    def __call__(self, model, batch):
        """(sum, count) of the losses of the batch's answers."""
        if not batch.count:  # all groups were left out
            self._add(batch, 0.0, 0.0, 0)
            return _zero(model), 0
        settings, mask = self.settings, batch.loss_mask.flatten()[batch.target_indices]  # (N,)
        rows = batch.target_indices // batch.x.size(1)  # (N,)
        logprobs = target_logprobs(model, batch, self.writer.engine.n_vocab)
        ratio = (logprobs - batch.logprobs).exp()  # 1 where target_indices is padded
        advantage = batch.advantages.to(ratio)[rows]
        if batch.credits is not None:
            advantage = advantage + batch.credits.to(ratio)
        low, high = 1 - settings.grpo_clip, 1 + settings.grpo_clip_high
        losses = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        kl = torch.zeros_like(losses)
        if batch.reference is not None:
            # The importance weight makes the gradient that of KL(π ‖ π_reference).
            kl = ratio * k3(batch.reference, logprobs)
            losses = losses + settings.grpo_beta * kl
        sums = row_sums(losses * mask, batch)  # (count,)
        if settings.grpo_by_length:
            sums = sums / row_sums(mask.float(), batch)
        else:
            sums = sums / settings.grpo_tokens
        is_clipped = ((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0))
        self._add(batch, (is_clipped & mask).sum(), (kl * mask).sum().detach(), mask.sum())
        return sums.sum(), batch.count

    def _add(self, batch, clipped, kl, tokens):
        if self._sums is None:
            self._sums = BatchSums(3 + len(batch.sums))
        self._sums.add([clipped, kl, tokens, *batch.sums.tolist()])

    def metric_sums(self):
        """See Objective: clipped tokens, KL, tokens that are learned from; the writer's sums."""
        n = 3 + len(SUMS) + len(self.writer.parts or ())
        return self._sums.take() if self._sums else torch.zeros(n, dtype=torch.float64)

    def metrics(self, sums):
        """The writer's metrics, and

        loss       minus the mean reward, as the val loss: the objective's own is 0 at the first
                   step, whatever the weights
        flat       the share of groups in which all answers have the same reward
        clipped    the share of tokens whose importance weight is clipped
        kl         from the reference, in nats a token (with grpo_beta)
        rollouts   answers a second and process
        """
        clipped, kl, tokens, *rest = sums
        found = self.writer.metrics(rest)
        if found:
            found["loss"] = -found["reward"]
            found["clipped"] = clipped / max(tokens, 1)
        if found and self.settings.grpo_beta:
            found["kl"] = kl / max(tokens, 1)
        return found


class HeldOutReward(Objective):
    """The mean reward of one answer to each held-out prompt, negative, so that less is better.
    Every evaluation draws with the same seeds. samples: lines of its first answers.

    reference: (model, dtype), for the KL divergence from it.
    """

    def __init__(self, prompts, writer, seed, reference):
        self.prompts, self.writer, self.seed, self.reference = prompts, writer, seed, reference
        self.samples, self._sums = [], None

    def __call__(self, model, batch):
        """(−sum of the rewards, prompts). model is the writer's."""
        rows = batch.rows.tolist()
        seeds = [np.random.default_rng([self.seed, row]).integers(2**63) for row in rows]
        answers = self.writer.write(self.prompts, rows, seeds)
        if self._sums is None:
            self.samples = []
            self._sums = BatchSums(1 + len(self.writer.sums(answers)))
        for row, answer in zip(rows, answers, strict=True):
            if len(self.samples) < SHOWN:
                self.samples.append(sample_line(self.prompts.records[row]["prompt"], answer))
        self._sums.add([self._kl(rows, answers), *self.writer.sums(answers)])
        return -torch.tensor(sum(answer.score.total for answer in answers)), len(rows)

    @torch.no_grad()
    def _kl(self, rows, answers):
        """The sum of k3 over the tokens of the answers."""
        model, dtype = self.reference
        made = rows_of(self.prompts, rows, answers, self.writer.tokenizer.pad)
        device = model.wte.weight.device
        batch = RolloutBatch.made(*made).to(device)
        with autocast(str(device), dtype):
            reference = target_logprobs(model, batch, self.writer.engine.n_vocab)
        mask = batch.loss_mask.flatten()[batch.target_indices]
        return (k3(reference, batch.logprobs) * mask).sum()

    def metric_sums(self):
        """See Objective: KL, and the writer's sums."""
        found, self._sums = self._sums, None
        n = 1 + len(SUMS) + len(self.writer.parts or ())
        return found.take() if found else torch.zeros(n, dtype=torch.float64)

    def metrics(self, sums):
        """The writer's metrics, and the KL divergence from the reference in nats a token."""
        found = self.writer.metrics(sums[1:])
        if found:
            found["kl"] = sums[0] / max(sums[1 + SUMS.index("tokens")], 1)
        return found


def k3(reference, logprobs):
    """(N,): an estimate of KL(π ‖ π_reference) from tokens that π drew, with this expectation, and
    never below 0 (Schulman 2020)."""
    gap = reference - logprobs
    return gap.expm1() - gap


def sample_line(prompt, answer):
    """A prompt, its answer and its reward as a text."""
    total, parts = answer.score.total, answer.score.parts
    named = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    return f"{prompt} → {answer.text} (reward {total:.2f}{': ' + named if len(parts) > 1 else ''})"


def _zero(model):
    """0, whose gradient is 0 for every trained weight: every process has the same gradients."""
    return sum(weight.sum() for weight in model.parameters() if weight.requires_grad) * 0.0


def make_grpo(settings, parent, model, tokenizer, data, dtype, distributed, resumed, reward):
    """(objective, metadata): the GRPO objective, and what config.json records of the reference.
    data.batches becomes the Rollouts of data.train.

    parent: the Checkpoint that the run starts from, or that it resumes. model: its model, not yet
    changed. reward: see AnswerWriter. UserError where the prompts and the run have different prompt
    formats.
    """
    check_prompt_format(settings, parent, from_json(data.train.meta))
    metadata = reference_metadata(parent, resumed)
    frozen = load_reference(metadata, distributed.device) if resumed else copy.deepcopy(model)
    reference = frozen.eval().requires_grad_(False), dtype
    data.train.answers = settings.grpo_tokens, settings.grpo_group
    writer = AnswerWriter(model, tokenizer, reward, settings.grpo_tokens)
    held_out = HeldOutReward(data.val, writer, settings.seed, reference)
    with_kl = reference if settings.grpo_beta else None
    data.batches = Rollouts(data.batches, data.train, writer, settings, with_kl)
    data.notes += _notes(settings, data)
    return GRPO(settings, writer, held_out), metadata


def _notes(settings, data):
    """A line where prompts leave less room than the longest answer."""
    room = data.train.block_size - np.concatenate([data.train.lengths, data.val.lengths])
    short = int((room < settings.grpo_tokens).sum())
    if not short:
        return []
    return [
        f"note: {short:,} prompts leave room for fewer than grpo_tokens={settings.grpo_tokens} in "
        f"block_size={data.train.block_size}: their answers are cut earlier, at the least after "
        f"{room.min()}"
    ]
