"""DPO (Rafailov et al. 2023): learn from pairs which of two answers is better.

    pairs = Pairs("data/processed_dpo", "train", tokenizer, 512)
    weights_hash = checkpoint.weights_hash("out/sft")
    add_reference(pairs, weights_hash, dtype, lambda: parent.model, distributed)
    objective = DPO(beta=0.1)
    loss, count = objective(model, pairs.batch(numbers))    # summed over the pairs, and how many
    objective.metrics(objective.metric_sums().tolist())     # {"margin", "accuracy", "kl"}

The loss of a pair is −log σ(β (Δ chosen − Δ rejected)), where Δ is the log-probability of an answer
under the model minus that under the reference model, from which training started. The reference's
log-probabilities are computed once and stored beside the blocks, in a file whose name contains the
hashes of its weights and of the blocks.
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
from minigpt.data.block_format import PREFERENCES, TARGET
from minigpt.models import checkpoint
from minigpt.models.device import autocast
from minigpt.tokenizer.chat_template import from_json, name_of
from minigpt.training import losses
from minigpt.training.objectives.next_token import BatchSums, Objective

ROWS = 32  # pairs in a batch of the reference, whatever batch_size: the same bits every time
STEP = 16  # the width of a batch is a multiple of it, so that compiled code sees few shapes


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
    """One split of preference pairs: Blocks whose rows 2i and 2i + 1 are pair i. Its length, and
    the numbers that batch() takes, count pairs.

    lengths: (n_rows,), tokens of each row up to the end of its answer.  starts: (n_rows + 1,), the
    index in `reference` of each row's first target.  reference: (n_targets,) float32, the
    reference's log-probability of every target, row by row; None before add_reference().
    """

    kind, unit = PREFERENCES["kind"], "pairs of blocks"

    def __init__(self, folder, split, tokenizer=None, block_size=None, isolate=True):
        super().__init__(folder, split, tokenizer, block_size, isolate)
        is_target = (self.mask & TARGET) > 0  # (n_rows, T)
        n_targets = is_target[:, 1:].sum(axis=1)  # (n_rows,); the first token is never a target
        if len(self.tokens) % 2 or not n_targets.all():
            raise UserError(
                f"{self.folder / split}.bin: not two blocks with an answer for every pair; run "
                f"again: {self.meta.get('command')}"
            )
        self.lengths = is_target.shape[1] - is_target[:, ::-1].argmax(axis=1)
        self.starts = np.concatenate(([0], np.cumsum(n_targets)))
        self.reference = None

    def of_another_kind(self, meta):
        """See Blocks."""
        return UserError(
            f"{self.folder}: holds no preference pairs, which --stage=dpo needs; make them: "
            f"python data/prepare_dpo.py --input=PATH --dataset=…"
        )

    def __len__(self):
        return len(self.tokens) // 2

    @property
    def tokens_per_block(self):
        """See Blocks: the mean of a pair, without padding."""
        return round(2 * self.lengths.mean())

    def batch(self, numbers):
        """The pairs with these numbers ((B,) int64) as a PairBatch of 2B rows on the CPU, without
        the padding at the end of all rows."""
        rows = (2 * np.asarray(numbers)[:, None] + [0, 1]).ravel()
        width = -(-self.lengths[rows].max() // STEP) * STEP
        tokens, mask = (part[rows][:, :width] for part in (self.tokens, self.mask))
        batch = PairBatch.of(tokens, mask, self.isolated, rows)
        reference = None
        if self.reference is not None:
            reference = torch.from_numpy(self.reference[self.target_positions(rows)])
        return replace(batch, count=len(numbers), reference=reference)

    def target_positions(self, rows):
        """The indices in `reference` of the targets of these rows, row by row."""
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


def target_logprobs(model, batch, n_vocab=None):
    """(N,) float32: the log-probability of the target at each of batch.target_indices; 0 where they
    are padding. n_vocab: over the ids below it, as the engine draws; None: over all rows.

    Only a chunk of logits is in memory at a time, as in losses.LinearCrossEntropy; the backward
    pass recomputes each chunk.
    """
    h = model(batch.x, batch.segment_ids, batch.positions, batch.cu_seqlens)
    h = h.flatten(0, 1).index_select(0, batch.target_indices)
    targets, weight = batch.y.flatten()[batch.target_indices], model.lm_head.weight[:n_vocab]
    chunk = losses.CPU_CHUNK if h.device.type == "cpu" else losses.CHUNK
    rows = max(losses.FEWEST_ROWS, chunk // weight.size(0))
    options = dict(use_reentrant=False, preserve_rng_state=False)  # there is no randomness in it
    parts = [
        recomputed(_logprobs, h[i : i + rows], weight, targets[i : i + rows], **options)
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
    """(sums, lengths), (n_pairs, 2) each, float64 and int64: log-probabilities of the chosen and
    the rejected answers under `model`, and their lengths in tokens, EOT included."""
    model.eval()
    device = model.wte.weight.device
    sums, lengths = np.zeros(2 * len(pairs)), np.zeros(2 * len(pairs), np.int64)
    for start in range(0, len(pairs), batch_size):
        batch = pairs.batch(np.arange(start, min(start + batch_size, len(pairs)))).to(device)
        sums[batch.rows] = row_sums(target_logprobs(model, batch), batch).cpu()
        lengths[batch.rows] = batch.loss_mask.sum(dim=1).cpu()
    return sums.reshape(-1, 2), lengths.reshape(-1, 2)


class DPO(Objective):
    """The objective, over pairs.

    beta: how strongly the model is held to the reference; small values let it go further away.
    """

    def __init__(self, beta=0.1):
        self.beta = beta
        self._sums = BatchSums(5)  # for metrics()

    def __call__(self, model, batch):
        """(sum, count) of the losses of the batch's pairs."""
        change = target_logprobs(model, batch) - batch.reference  # (N,), 0 where `at` is padded
        row = row_sums(change, batch)  # (2 pairs,)
        margin = self.beta * (row[0::2] - row[1::2])  # (pairs,)
        self._record(batch, change.detach(), margin.detach())
        return -F.logsigmoid(margin).sum(), batch.count

    def _record(self, batch, change, margin):
        kl = row_sums(change.expm1() - change, batch)[0::2].sum()  # 0 where `at` is padded
        tokens = batch.loss_mask.sum(dim=1)[0::2].sum()
        self._sums.add([batch.count, margin.sum(), (margin > 0).sum(), kl, tokens])

    def metric_sums(self):
        """See Objective: pairs, margins, pairs ranked correctly, KL and tokens of chosen ones."""
        return self._sums.take()

    def metrics(self, sums):
        """Means over the pairs, {} where there were none:

        margin     β (Δ chosen − Δ rejected)
        accuracy   the share of pairs whose margin is above 0
        kl         an estimate of the KL divergence of the model from the reference, KL(reference ‖
                   model), in nats a token: the mean of r − 1 − log r over the tokens of the chosen
                   answers, r the token's probability under the model divided by that under the
                   reference (Schulman 2020, "k3"). The chosen answers serve as samples of the
                   reference.
        """
        count, margin, correct, kl, tokens = sums
        if not count:
            return {}
        return dict(margin=margin / count, accuracy=correct / count, kl=kl / tokens)


# -- the reference ---------------------------------------------------------------------------------


def make_dpo(settings, parent, model, data, dtype, distributed, resumed):
    """(objective, metadata): the DPO objective, with the reference's log-probabilities added to
    data.train and data.val, and what config.json records of the reference.

    parent: the Checkpoint that the run starts from, or that it resumes. model: its model, not yet
    changed. UserError where the data and the run have different prompt formats.
    """
    check_prompt_format(settings, parent, from_json(data.train.meta))
    metadata = reference_metadata(parent, resumed)

    def load():
        return load_reference(metadata, distributed.device) if resumed else model

    for pairs in (data.train, data.val):
        add_reference(pairs, metadata["reference_hash"], dtype, load, distributed)
    return DPO(settings.dpo_beta), metadata


def check_prompt_format(settings, parent, prompt_format):
    """UserError where the prompts of the data have another format than those of the run."""
    if parent.prompt_format != prompt_format:
        ours, theirs = name_of(prompt_format), name_of(parent.prompt_format)
        remedy = "fine-tune that run first"
        if theirs != "plain":
            remedy = f"prepare the data with --template={theirs}"
        raise UserError(
            f"{settings.dataset}: its prompts have the format {ours}, those of {parent.folder} "
            f"{theirs}: {remedy}"
        )


def reference_metadata(parent, resumed):
    """What config.json records of the reference: its folder and the hash of its weights."""
    if resumed:
        return {name: parent.meta[name] for name in ("reference", "reference_hash")}
    weights_hash = checkpoint.weights_hash(parent.folder)
    return dict(reference=parent.folder.as_posix(), reference_hash=weights_hash)


def load_reference(metadata, device):
    """The reference model of a resumed run, whose log-probabilities are no longer beside the pairs.
    UserError where its weights have changed."""
    folder = metadata["reference"]
    if checkpoint.weights_hash(folder) != metadata["reference_hash"]:
        raise UserError(
            f"{folder}: its weights are not those of this run's reference, whose log-probabilities "
            f"are no longer beside the pairs; restore either"
        )
    return checkpoint.load(folder, device).model


def add_reference(pairs, weights_hash, dtype, load, distributed):
    """Set pairs.reference: read from the file beside the blocks, or compute and store it.

    weights_hash: of the reference model. dtype: of its forward pass. load(): the reference, a GPT
    on the device; all processes call it, or none. UserError where the file cannot be written.
    """
    key = hashlib.sha256(f"{weights_hash} {pairs.fingerprint()} {dtype}".encode()).hexdigest()[:16]
    path = pairs.folder / f"reference-{pairs.split}-{key}.npy"
    n_targets = int(pairs.starts[-1])
    found = _read(path, n_targets) if distributed.is_main else None
    if distributed.sum(torch.tensor(float(found is not None))):
        values = np.zeros(n_targets, np.float32) if found is None else found
    else:
        values = _reference(load(), pairs, dtype, distributed)
    # Each value is 0 in all processes but one.
    pairs.reference = distributed.sum(torch.from_numpy(values)).numpy()
    if distributed.is_main and found is None:
        _write(path, pairs.reference)


@torch.no_grad()
def _reference(model, pairs, dtype, distributed):
    """(n_targets,) float32: log-probabilities of all targets under `model`; 0 where another process
    computes them."""
    model.eval()
    device, n = distributed.device, distributed.world_size
    values = np.zeros(int(pairs.starts[-1]), np.float32)
    order = np.argsort(pairs.lengths.reshape(-1, 2).max(axis=1), kind="stable")  # little padding
    starts = range(distributed.rank * ROWS, len(pairs), n * ROWS)
    for start in tqdm(starts, desc=f"reference, {pairs.split}", leave=False, disable=None):
        batch = pairs.batch(order[start : start + ROWS])
        with autocast(device, dtype):
            found = target_logprobs(model, batch.to(device))[: len(batch.target_indices)]
        values[pairs.target_positions(batch.rows)] = found.cpu().numpy()
    return values


def _read(path, n_targets):
    """The values in a file; None where it is missing or incomplete."""
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
