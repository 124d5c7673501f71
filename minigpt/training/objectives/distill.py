"""Distillation (Hinton et al. 2015): learn the next token from a text and from a teacher's
probabilities.

    objective, metadata = make_distill(settings, model, tokenizer, dtype, device)
    loss, count = objective(model, batch)

Of each target, loss = distill_text · cross-entropy of the text's token
                     + (1 − distill_text) · KL(teacher ‖ model), over the whole vocabulary.
The val loss is the cross-entropy alone: that of a run without a teacher.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.training import losses
from minigpt.training.objectives.next_token import BatchSums, NextToken, Objective


class Distill(Objective):
    """The objective, over targets. teacher: a GPT on the device. text: the weight of the text's
    token, 0 to 1. n_vocab: the ids in use, below the models' padding rows."""

    def __init__(self, teacher, text=0.5, n_vocab=None):
        self.teacher = teacher.eval().requires_grad_(False)
        self.text, self.n_vocab = text, n_vocab
        self._sums = BatchSums(3)  # for metrics()

    @property
    def held_out(self):
        """See Objective: the text alone."""
        return NextToken()

    def __call__(self, model, batch):
        """(sum, count): a scalar tensor in nats, and the number of targets, an int."""
        inputs = batch.x, batch.segment_ids, batch.positions, batch.cu_seqlens
        indices = batch.target_indices  # (N,)
        with torch.no_grad():
            taught = self.teacher(*inputs).flatten(0, 1).index_select(0, indices)
        h = model(*inputs).flatten(0, 1).index_select(0, indices)  # (N, C)
        targets = batch.y.flatten()[indices]
        mask = batch.loss_mask.flatten()[indices]
        weight, teacher_weight = model.lm_head.weight, self.teacher.lm_head.weight
        chunk = losses.CPU_CHUNK if h.device.type == "cpu" else losses.CHUNK
        rows = max(losses.FEWEST_ROWS, chunk // weight.size(0))
        options = dict(use_reentrant=False, preserve_rng_state=False)
        parts = [
            recomputed(
                self._losses,
                *(part[i : i + rows] for part in (h, taught, targets, mask)),
                weight,
                teacher_weight,
                **options,
            )
            for i in range(0, len(h), rows)
        ]
        text, kl = torch.stack(parts).sum(dim=0)
        self._sums.add([batch.count, text.detach(), kl.detach()])
        return self.text * text + (1 - self.text) * kl, batch.count

    def _losses(self, h, taught, targets, mask, weight, teacher_weight):
        """(2,): cross-entropy and KL divergence, summed over the rows that count."""
        device = h.device.type
        with torch.autocast(device, enabled=False):
            logits = F.linear(h.float(), weight.float())  # (n, V)
            theirs = F.linear(taught.float(), teacher_weight.float())
        text = F.cross_entropy(logits, targets, reduction="none")  # (n,)
        log_q = logits[:, : self.n_vocab].log_softmax(-1)
        log_p = theirs[:, : self.n_vocab].log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)  # (n,)
        return torch.stack([(text * mask).sum(), (kl * mask).sum()])

    def metric_sums(self):
        """See Objective: targets, cross-entropy, KL."""
        return self._sums.take()

    def metrics(self, sums):
        """text: the cross-entropy; kl: KL(teacher ‖ model); both in nats a target."""
        count, text, kl = sums
        return dict(text=text / count, kl=kl / count) if count else {}


def make_distill(settings, model, tokenizer, device):
    """(objective, metadata): the Distill objective with the teacher of the settings, and what
    config.json records of it. UserError where the teacher has another vocabulary, or cannot read
    blocks of this size."""
    teacher = checkpoint.load(settings.teacher, device)
    value = f"{settings.origin('teacher')}: teacher={settings.teacher}"
    if teacher.tokenizer.hash != tokenizer.hash:
        raise UserError(
            f"{value}: its tokenizer is {teacher.tokenizer.name} ({teacher.tokenizer.hash}), that "
            f"of this run {tokenizer.name} ({tokenizer.hash}): probabilities over different "
            f"vocabularies cannot be compared; take a teacher with this tokenizer, or prepare the "
            f"data with the teacher's"
        )
    if teacher.model.config.block_size < model.config.block_size:
        raise UserError(
            f"{value}: it reads blocks of {teacher.model.config.block_size} tokens, this run of "
            f"{model.config.block_size}: prepare the data with its block_size"
        )
    metadata = dict(teacher=str(settings.teacher))
    metadata["teacher_hash"] = checkpoint.weights_hash(settings.teacher)
    return Distill(teacher.model, settings.distill_text, tokenizer.n_vocab), metadata
