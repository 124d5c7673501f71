"""The memory of a training step by part, from the shape of the model alone.

    with torch.device("meta"):
        model = GPT(config)                        # takes no memory
    needs = memory_of_step(model, Work(batch_size=32, low_precision=True))
    print(needs.weights, needs.activations, needs.peak)        # bytes of one process

Weights, gradients and the optimizer's states are counted on the model. Activations are what the
blocks of model.py keep for the backward pass, term by term as in Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models", section 4. There a token of GPT keeps
34 · C + 5 · n_head · T bytes a block; here the norms are RMSNorm, queries and keys are normalized
and rotated, no matrix of scores is stored, the MLP is SwiGLU, and the loss is computed in chunks.
FSDP divides weights, gradients and states, as stage 3 of ZeRO (Rajbhandari et al. 2020).

It is the memory of eager PyTorch: torch.compile needs less for activations. bench/memory.py
compares these figures with steps that were measured.
"""

from dataclasses import dataclass

from minigpt.training.losses import rows_of_chunk
from minigpt.training.optim import STACK, WIDE, muon_parts, parameter_groups
from model import ACTIVATION_CHECKPOINTING_FROM

FLOAT, HALF = 4, 2  # bytes of float32 (weights, gradients, states, residual stream), of bfloat16


@dataclass(frozen=True)
class Work:
    """What a process does in a step.

    batch_size: blocks in a forward pass. accumulates: whether a step has several of these.
    optimizer: muon or adamw. muon_float32: Muon iterates in float32, as without bfloat16.
    low_precision: products in bfloat16 or float16, by autocast; false: in float32. on_gpu: false: a
    CPU. masked: attention within segments by a mask, as on a CPU. activation_checkpointing: of
    whole blocks. processes: of the run. sharded: whether they share weights, gradients and states
    (FSDP). supervised: share of the tokens that are targets.
    """

    batch_size: int
    accumulates: bool = True
    optimizer: str = "muon"
    muon_float32: bool = False
    low_precision: bool = False
    on_gpu: bool = False
    masked: bool = False
    activation_checkpointing: bool = False
    processes: int = 1
    sharded: bool = False
    supervised: float = 1.0

    @property
    def size(self):
        """Bytes of a number that matrix products read and write."""
        return HALF if self.low_precision else FLOAT

    @property
    def shards(self):
        """The number of processes that share the weights."""
        return self.processes if self.sharded else 1


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    weights (with the buffers), gradients, optimizer: its share of them. gathered: what FSDP
    collects of the others. activations: kept for the backward pass. loss: the output layer's
    gradients and a chunk of logits. backward, step: the peaks of the forward and backward pass, and
    of the optimizer's step. start: of the start, where with FSDP each process has the whole model.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    loss: int
    backward: int
    step: int
    start: int

    @property
    def peak(self):
        """The most at any time. It is less than the sum of the parts: activations are freed while
        gradients are computed."""
        return max(self.backward, self.step, self.start)


def memory_of_step(model, work):
    """The Memory of a step of a GPT, on whatever device the model is."""
    groups = parameter_groups(model)
    trained = sum(map(_bytes, groups.values()))
    states = 2 * trained  # AdamW has two for each weight, Muon one for each of a matrix
    if work.optimizer == "muon":
        states -= _bytes(groups["matrices"])
    whole = _bytes(model.parameters())
    shares = [-(-n // work.shards) for n in (whole, trained, states)]
    weights, gradients, optimizer = shares
    weights += sum(buffer.nbytes for buffer in model.buffers())
    gathered = _gathered(model, work)
    activations = _activations(model, work, groups)
    loss = _loss(model, work)
    resident = weights + optimizer + gathered
    backward = resident + _backward_peak(model, work, gradients, activations, loss)
    step = resident + gradients + _muon_workspace(model, work, groups)
    return Memory(
        weights,
        gradients,
        optimizer,
        gathered,
        activations.total,
        loss,
        backward=int(backward),
        step=int(step),
        start=whole + weights if work.shards > 1 else weights,
    )


def _bytes(weights):
    """Bytes of these weights in float32, or of their gradients."""
    return FLOAT * sum(weight.numel() for weight in weights)


def _trained_bytes(module):
    return _bytes(weight for weight in module.parameters() if weight.requires_grad)


def _gathered(model, work):
    """FSDP: two blocks (one computes, one is on its way), the gradients of one before they are
    divided, and all the time what is outside the blocks."""
    if work.shards == 1:
        return 0
    block = _bytes(model.blocks[0].parameters())
    outside = _bytes(model.parameters()) - len(model.blocks) * block
    return 2 * block * work.size // FLOAT + 2 * _trained_bytes(model.blocks[0]) + outside


# -- activations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Activations:
    """Bytes. block: kept by one block. recomputed: what its backward pass computes again. total:
    kept by all n_blocks."""

    block: int
    recomputed: int
    n_blocks: int
    total: int


def _activations(model, work, groups):
    config, tokens = model.config, work.batch_size * model.config.block_size
    hidden = tokens * hidden_width(config) * work.size  # after the activation function
    kept, recomputed = tokens * kept_by_block(config, work) + hidden, 0
    if work.low_precision and work.shards == 1:
        # Autocast's copies of the weights are kept, too.
        kept += sum(HALF * w.numel() for w in model.blocks[-1].parameters() if w.dim() == 2)
    if work.activation_checkpointing:
        kept, recomputed = _residual(config, tokens), kept - _residual(config, tokens)
    elif recomputes_mlp(config, work):
        kept, recomputed = kept - hidden, hidden
    # Frozen blocks keep nothing, unless gradients pass through them to the embeddings.
    n_blocks = sum(_trained_bytes(block) > 0 for block in model.blocks)
    n_blocks = len(model.blocks) if groups["embeddings"] else n_blocks
    angles = 0
    if config.position == "rope":  # cos and sin of each position, shared by all blocks
        angles = (tokens if work.masked else config.block_size) * config.head_dim * FLOAT
    return _Activations(kept, recomputed, n_blocks, n_blocks * kept + angles)


def _residual(config, tokens):
    return tokens * config.n_embd * FLOAT


def kept_by_block(config, work):
    """Bytes that a block keeps for the backward pass for each token, without the hidden values of
    its MLP after the activation function."""
    C, T, hs = config.n_embd, config.block_size, config.head_dim
    q, kv = config.n_head * hs, config.n_kv_head * hs
    statistics = FLOAT * (2 if config.norm == "layernorm" else 1)  # of a norm, for each row
    kept = 2 * (C * FLOAT + statistics)  # the inputs of two norms
    kept += 2 * C * work.size  # the inputs of qkv and of the MLP
    kept += (q + 2 * kv) * work.size  # queries, keys and values
    if config.qk_norm:
        kept += (config.n_head + config.n_kv_head) * statistics
        kept += (q + kv) * FLOAT if work.low_precision else 0  # autocast gives norms a float32 copy
    if config.qk_norm or config.position == "rope":
        kept += (q + kv) * work.size  # normalized and rotated
    kept += q * work.size + config.n_head * FLOAT  # attention's output; log-sum-exp of the scores
    if work.masked:
        kept += T * work.size  # a bool mask becomes numbers, in each block
    if config.dropout and work.on_gpu:
        kept += 2 * C  # two masks of one byte
    elif config.dropout:  # on a CPU attention with dropout stores three matrices of scores
        kept += 2 * C * FLOAT + 3 * config.n_head * T * FLOAT + (q - config.n_head) * FLOAT
    return kept + hidden_width(config) * work.size


def hidden_width(config):
    """Values of the MLP before its activation function. Afterwards there are as many: for SwiGLU
    that of the gate, and the product."""
    return (2 if config.mlp == "swiglu" else 1) * config.n_hidden


def recomputes_mlp(config, work):
    """Whether model.py recomputes the MLP's activations without activation_checkpointing."""
    tokens = work.batch_size * config.block_size
    return tokens * hidden_width(config) >= ACTIVATION_CHECKPOINTING_FROM


# -- peaks -----------------------------------------------------------------------------------------


def _loss(model, work):
    """Bytes of LinearCrossEntropy: the gradients of the hidden states and of the table, the hidden
    states of the targets, and what it computes for one chunk of them."""
    V, C = model.lm_head.weight.shape
    N = int(work.supervised * work.batch_size * model.config.block_size)
    rows = min(N, rows_of_chunk(V, work.on_gpu))
    found = 2 * N * C * FLOAT + rows * (V + C + 8) * FLOAT
    table = _trained_bytes(model.lm_head)
    if work.low_precision:  # the table and a chunk's gradients of it and of the logits, in 16 bits
        found += rows * V * HALF + V * C * HALF + table * HALF // FLOAT + table
    return found + table


def _backward_peak(model, work, gradients, activations, loss):
    """Bytes at the peak of the forward and backward pass, beside what is there all the time."""
    config, tokens = model.config, work.batch_size * model.config.block_size
    residual, table = _residual(config, tokens), _trained_bytes(model.lm_head)
    # Gradients are there from the forward passes before. DDP's are parts of buffers that stay.
    has_gradients = work.accumulates or work.processes > 1
    before = gradients if has_gradients else 0
    at_loss = before + activations.total + residual + loss

    # The MLP of a block goes backward: gradients of the residual stream, of the hidden values and
    # of one matrix, beside that of the table.
    matrix = _bytes(model.blocks[-1].mlp.proj.parameters())
    matrix += matrix * HALF // FLOAT if work.low_precision else 0
    hidden = tokens * hidden_width(config) * work.size
    in_last = (
        before + activations.total + activations.recomputed + residual + hidden + matrix + table
    )
    # Towards the first block activations are freed, and gradients stay.
    n_above = activations.n_blocks - 1
    stays = 0 if has_gradients else _trained_bytes(model.blocks[-1])
    in_first = in_last + n_above * (stays - activations.block)

    # A tied table ends with its gradients by the output layer and by the embedding, and their sum.
    copies = (2 if config.tie_embeddings else 0) + has_gradients
    return max(at_loss, in_last, in_first, gradients + copies * table)


def _muon_workspace(model, work, groups):
    """Bytes of Muon.step(): the updates of all matrices, and the iteration on the largest stack of
    n matrices (m, k): the stack, an iterate and the next, and two Gram matrices (m, m) of each; of
    wide ones in float32 five Gram matrices, and one iterate less. See orthogonalize()."""
    if work.optimizer != "muon":
        return 0
    size = FLOAT if work.muon_float32 else work.size
    stacks = {}  # shape → matrices
    for rows, columns in muon_parts(model, groups["matrices"]):
        shape = min(rows, columns), max(rows, columns)
        stacks[shape] = stacks.get(shape, 0) + 1
    peak = 0
    for (m, k), n in stacks.items():
        n = min(-(-n // work.shards), max(1, STACK // (m * k)))
        stack, gram = n * m * k * size, n * m * m * size
        iteration = 3 * stack + 2 * gram
        if size == FLOAT and k >= WIDE * m:
            iteration = max(2 * stack + 5 * gram, 3 * stack + gram)
        peak = max(peak, iteration, n * m * k * (FLOAT + size))
    # With FSDP a process has its rows of all matrices, and some whole ones: what it sends, what it
    # gets, and the matrices themselves.
    updates = _bytes(groups["matrices"]) // work.shards
    return (4 if work.shards > 1 else 1) * updates + peak
