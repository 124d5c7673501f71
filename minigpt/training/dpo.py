"""DPO (Rafailov et al. 2023): learn from pairs which of two answers is better.

    pairs = Pairs("data/processed_dpo", "train", tokenizer, 512)
    base = checkpoint.weights_hash("out/sft")
    add_reference(pairs, base, dtype, lambda: parent.model, device)
    objective = DPO(beta=0.1)
    loss, count = objective(model, pairs.batch(numbers))    # summed over the pairs, and how many
    objective.figures()                                     # {"margin", "accuracy", "kl"}

The loss of a pair is −log σ(β (Δ chosen − Δ rejected)), Δ the log-probability of an answer by the
model less that by the reference, the run from which training started. Those of the reference are
computed once and lie beside the blocks, in a file that is named by the hashes of its weights and of
the blocks.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm

from data_utils import Batch, Blocks
from minigpt.common.errors import UserError
from minigpt.common.files import written_whole
from minigpt.data.block_format import TARGET
from minigpt.data.preferences import FACTS
from minigpt.models.device import autocast
from minigpt.training import losses

ROWS = 32  # pairs read at once for the reference, whatever batch_size: the same bits every time
STEP = 16  # the width of a batch is a multiple of it, so that compiled code meets few shapes


# -- pairs -----------------------------------------------------------------------------------------


@dataclass
class PairBatch(Batch):
    """A Batch whose rows 2i and 2i + 1 are the chosen and the rejected answer of pair i. count: its
    pairs. reference: (N,) float32, the reference's log-probability of the target at each of
    `target_indices`.
    """

    reference: torch.Tensor | None = None

    def to(self, device):
        """See Batch."""
        batch = super().to(device)
        if self.reference is None:
            return batch
        longer = F.pad(self.reference, (0, len(batch.target_indices) - len(self.target_indices)))
        return replace(batch, reference=longer.to(device))


class Pairs(Blocks):
    """One split of preference pairs: Blocks of which two and two belong together. Its length, and
    the numbers that batch() takes, count pairs.

    lengths: (n_rows,), tokens of each row up to its answer's end.  starts: (n_rows + 1,), where the
    targets of each row begin in `reference`.  reference: (n_targets,) float32, the reference's
    log-probability of every target, row by row; None before add_reference().
    """

    kind, unit = FACTS["kind"], "pairs of blocks"

    def __init__(self, folder, split, tokenizer=None, block_size=None, isolate=True):
        super().__init__(folder, split, tokenizer, block_size, isolate)
        learned = (self.mask & TARGET) > 0  # (n_rows, T)
        n_targets = learned[:, 1:].sum(axis=1)  # of each row; its first token is no target
        if len(self.tokens) % 2 or not n_targets.all():
            raise UserError(
                f"{self.folder / split}.bin: not two blocks with an answer for every pair; run "
                f"again: {self.meta.get('command')}"
            )
        self.lengths = learned.shape[1] - learned[:, ::-1].argmax(axis=1)
        self.starts = np.concatenate(([0], np.cumsum(n_targets)))
        self.reference = None

    def of_another_kind(self):
        """See Blocks."""
        return UserError(
            f"{self.folder}: holds no preference pairs, of which --stage=dpo learns; make them: "
            f"python data/prepare_dpo.py --input=PATH --dataset=…"
        )

    def __len__(self):
        return len(self.tokens) // 2

    @property
    def tokens_per_block(self):
        """See Blocks: of a pair in the mean, without padding."""
        return round(2 * self.lengths.mean())

    def batch(self, numbers):
        """The pairs with these numbers ((B,) int64) as a PairBatch of 2 B rows on the CPU, without
        the padding that all of them end in."""
        rows = (2 * np.asarray(numbers)[:, None] + [0, 1]).ravel()
        width = -(-self.lengths[rows].max() // STEP) * STEP
        tokens, mask = (part[rows][:, :width] for part in (self.tokens, self.mask))
        batch = PairBatch.of(tokens, mask, self.isolated, rows)
        reference = None
        if self.reference is not None:
            reference = torch.from_numpy(self.reference[self.places(rows)])
        return replace(batch, count=len(numbers), reference=reference)

    def places(self, rows):
        """Where the targets of these rows, one row after the other, stand in `reference`."""
        return np.concatenate([np.arange(*self.starts[[row, row + 1]]) for row in rows])

    def fingerprint(self):
        """The SHA-256 of the blocks and masks."""
        digest = hashlib.sha256()
        for suffix in (".bin", ".mask"):
            with open(self.folder / f"{self.split}{suffix}", "rb") as file:
                while part := file.read(2**20):
                    digest.update(part)
        return digest.hexdigest()


# -- log-probabilities -----------------------------------------------------------------------------


def target_logprobs(model, batch):
    """(N,) float32: the log-probability of the target at each of batch.target_indices; padding gets
    0.

    Logits stand in memory a chunk at a time, as in objectives.LinearCrossEntropy; the backward pass
    makes each chunk anew.
    """
    h = model(batch.x, batch.segment_ids, batch.positions, batch.cu_seqlens)
    h = h.flatten(0, 1).index_select(0, batch.target_indices)
    targets, weight = batch.y.flatten()[batch.target_indices], model.lm_head.weight
    chunk = losses.CPU_CHUNK if h.device.type == "cpu" else losses.CHUNK
    rows = max(losses.FEWEST_ROWS, chunk // weight.size(0))
    anew = dict(use_reentrant=False, preserve_rng_state=False)  # there is no randomness in it
    parts = [
        recomputed(_logprobs, h[i : i + rows], weight, targets[i : i + rows], **anew)
        for i in range(0, len(h), rows)
    ]
    return torch.cat(parts) * batch.loss_mask.flatten()[batch.target_indices]


def _logprobs(h, weight, targets):
    device = h.device.type
    autocast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Not float16, whose gradients vanish for probabilities below 6e-8.
    with torch.autocast(device, autocast_to, enabled=autocast_to == torch.bfloat16):
        logits = F.linear(h.to(weight.dtype), weight).float()  # (n, V)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


def row_sums(values, batch):
    """(B,): the sum of `values` (N,), one for each of batch.target_indices, over each row."""
    B, T = batch.x.size()
    return torch.zeros(B, device=values.device).index_add(0, batch.target_indices // T, values)


@torch.no_grad()
def answer_logprobs(model, pairs, batch_size=ROWS):
    """(sums, lengths), (n_pairs, 2) each, float64 and int64: the log-probabilities that `model`
    gives the chosen and the rejected answers, and their tokens, ends and all."""
    model.eval()
    device = model.wte.weight.device
    sums, lengths = np.zeros(2 * len(pairs)), np.zeros(2 * len(pairs), np.int64)
    for start in range(0, len(pairs), batch_size):
        batch = pairs.batch(np.arange(start, min(start + batch_size, len(pairs)))).to(device)
        sums[batch.rows] = row_sums(target_logprobs(model, batch), batch).cpu()
        lengths[batch.rows] = batch.loss_mask.sum(dim=1).cpu()
    return sums.reshape(-1, 2), lengths.reshape(-1, 2)


class DPO:
    """The objective: called as objectives.next_token is, it gives (sum, count) over pairs.

    beta: how much a difference in log-probability counts; small values let the model go further
    from the reference. average: log-probabilities are divided by their answer's length in tokens.
    label_smoothing: the share of pairs that are taken to be labelled the wrong way round (Mitchell
    2023, "conservative DPO").
    """

    def __init__(self, beta=0.1, average=False, label_smoothing=0.0):
        self.beta, self.average, self.label_smoothing = beta, average, label_smoothing
        self._noted = [torch.zeros(5)]  # what figures() will say, on the device

    def __call__(self, model, batch):
        change = target_logprobs(model, batch) - batch.reference  # (N,), 0 where `at` is padded
        row = row_sums(change, batch)  # (2 pairs,)
        lengths = batch.loss_mask.sum(dim=1)
        if self.average:
            row = row / lengths
        chosen, rejected = row[0::2], row[1::2]
        margin = self.beta * (chosen - rejected)
        smoothing = self.label_smoothing
        loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
        self._note(batch, change.detach(), margin.detach(), lengths)
        return loss.sum(), batch.count

    def _note(self, batch, change, margin, lengths):
        strays = row_sums(change.expm1() - change, batch)[0::2].sum()  # 0 where `at` is padded
        facts = margin.sum(), (margin > 0).sum(), strays, lengths[0::2].sum()
        count = torch.tensor(float(batch.count), device=margin.device)
        self._noted.append(torch.stack([count, *facts]))

    def figures(self, summed=lambda totals: totals):
        """Means over all pairs since the last call, {} where there were none:

        margin     β (Δ chosen − Δ rejected)
        accuracy   the share of pairs whose margin is above 0
        kl         over the tokens of the chosen answers, r − 1 − log r in nats, r the model's
                   probability of the token divided by the reference's: an estimate of the KL
                   divergence of the model from the reference, KL(reference ‖ model), a token
                   (Schulman 2020, "k3"). The chosen answers stand for samples from the reference.

        summed: adds up a tensor over all processes.
        """
        device = self._noted[-1].device
        totals = torch.stack([noted.to(device) for noted in self._noted]).sum(dim=0)
        self._noted = self._noted[:1]
        count, margin, right, strays, tokens = summed(totals.cpu()).tolist()
        if not count:
            return {}
        return dict(margin=margin / count, accuracy=right / count, kl=strays / tokens)


# -- the reference ---------------------------------------------------------------------------------


def add_reference(
    pairs, base, dtype, load, device="cpu", rank=0, world=1, summed=lambda totals: totals
):
    """Set pairs.reference: from the file beside the blocks; where that is not there, compute and
    keep it.

    base: the hash of the reference's weights. dtype: in which it reads the pairs. load(): the
    reference, a GPT on the device; it is called by all processes or by none. summed: as in
    DPO.figures(). UserError where the file cannot be written.
    """
    key = hashlib.sha256(f"{base} {pairs.fingerprint()} {dtype}".encode()).hexdigest()[:16]
    path = pairs.folder / f"reference-{pairs.split}-{key}.npy"
    n_targets = int(pairs.starts[-1])
    found = _read(path, n_targets) if rank == 0 else None
    if int(summed(torch.tensor(float(found is not None)))):
        values = np.zeros(n_targets, np.float32) if found is None else found
    else:
        values = _reference(load(), pairs, dtype, device, rank, world)
    # Of each value all processes but one have 0.
    pairs.reference = summed(torch.from_numpy(values)).numpy()
    if rank == 0 and found is None:
        _write(path, pairs.reference)


@torch.no_grad()
def _reference(model, pairs, dtype, device, rank, world):
    """(n_targets,) float32: log-probabilities of all targets by `model`; 0 where another process
    computes them."""
    model.eval()
    values = np.zeros(int(pairs.starts[-1]), np.float32)
    order = np.argsort(pairs.lengths.reshape(-1, 2).max(axis=1), kind="stable")  # little padding
    starts = range(rank * ROWS, len(pairs), world * ROWS)
    for start in tqdm(starts, desc=f"reference, {pairs.split}", leave=False, disable=None):
        batch = pairs.batch(order[start : start + ROWS])
        with autocast(device, dtype):
            found = target_logprobs(model, batch.to(device))[: len(batch.target_indices)]
        values[pairs.places(batch.rows)] = found.cpu().numpy()
    return values


def _read(path, n_targets):
    """The values in a file; None where it is not there or is not whole."""
    try:
        values = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape == (n_targets,) and values.dtype == np.float32 else None


def _write(path, values):
    try:
        with written_whole(path) as partial, open(partial, "wb") as file:
            np.save(file, values)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); the reference's log-probabilities "
            f"belong beside the blocks: make room, or prepare them in a folder you may write to"
        ) from None
