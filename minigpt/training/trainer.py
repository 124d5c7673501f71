"""Trainer: take steps, evaluate, save and resume.

    trainer = Trainer(settings, distributed, model, tokenizer, objective, optimizers, data, dtype)
    trainer.begin()
    while trainer.progress < 1:
        result = trainer.train_step()
    metrics, is_best = trainer.evaluate()
    trainer.save("out/run")

The trainer is independent of the task: pretraining, fine-tuning, LoRA, frozen layers, DPO, GRPO and
distillation differ in the data, the objective and the parameters that require a gradient. The loop
is in train.py.
"""

import contextlib
import math
import signal
import time
from dataclasses import dataclass

import torch

from data_utils import evaluation_batches
from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.models.device import autocast
from minigpt.tokenizer.chat_template import from_json, to_json
from minigpt.training.distributed import accumulate
from minigpt.training.losses import total_loss
from minigpt.training.objectives.next_token import NextToken
from minigpt.training.optim import lr_scale, set_lr
from minigpt.training.sharding import whole
from minigpt.training.state import TrainState


@dataclass
class StepResult:
    """One step of all processes. loss: the objective's mean over the step's targets (or pairs),
    before the update. lr: learning rate. tokens: tokens processed. metrics: the objective's
    own, by name."""

    loss: float
    lr: float
    tokens: int
    seconds: float
    metrics: dict


class StepLoss(torch.nn.Module):
    """An objective as a module: so DistributedDataParallel has the whole forward pass in it, the
    output layer, too. forward(batch): see Objective."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch):
        return self.objective(self.model, batch)


class Trainer:
    """state: a TrainState, up to date after each step. stop_requested: whether any process got
    SIGINT or SIGTERM; all processes see it after the same step.

    model: a GPT on distributed.device. objective: an Objective. optimizers: a list, from
    make_optimizers(). data: see setup.Data. dtype: of the forward pass. metadata: what config.json
    records besides what the trainer knows, a dict.
    """

    def __init__(
        self,
        settings,
        distributed,
        model,
        tokenizer,
        objective,
        optimizers,
        data,
        dtype,
        metadata=None,
    ):
        self.settings, self.distributed, self.data = settings, distributed, data
        self.model, self.tokenizer, self.objective = model, tokenizer, objective
        self.optimizers, self.dtype, self.metadata = optimizers, dtype, metadata or {}
        self.device = distributed.device
        self.compiled = torch.compile(model) if settings.compile else model
        self.step_loss = distributed.wrap(StepLoss(self.compiled, objective))
        device_type = self.device.split(":")[0]
        self.scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)
        self.state = TrainState(world=distributed.world_size, blocks=len(data.train))
        self.stop = StopOnSignal()
        self.stop_requested = False
        n_batches = settings.gradient_accumulation_steps * distributed.world_size
        self.tokens_per_step = settings.batch_size * data.train.tokens_per_block * n_batches
        self._batches = []  # micro-batches of the next step on this process
        self._count = 0  # total target count of the next step over all processes
        self._is_compiling = False
        self._clock = 0.0  # when the time spent was last measured
        self._evaluation_began = None  # of the evaluation after the last step
        self._saved = 0.0  # minutes spent at the last save of a resumable checkpoint

    @property
    def progress(self):
        """The share of the run that is done, 0 to 1 or above: by steps or by minutes, whichever is
        larger."""
        if self.state.step >= self.settings.max_iters:
            return 1.0
        share = self.state.step / self.settings.max_iters
        if (minutes := self.settings.max_minutes) is not None:
            # At least half of the minutes are for steps, however long an evaluation takes.
            share = max(share, self.state.spent / max(minutes - self.state.reserve, minutes / 2))
        return share

    # -- steps -------------------------------------------------------------------------------------

    def begin(self):
        """Call once before the first step, after load(). UserError where the processes do not
        start from the same step."""
        steps = sorted(set(self.distributed.gather(self.state.step)))
        if len(steps) > 1:
            raise UserError(
                f"{self.settings.out_dir}: the processes have read different checkpoints, of steps "
                f"{', '.join(map(str, steps))}: with several machines put the folder on a shared "
                f"disk, or copy it to each before you resume"
            )
        self.model.train()
        self._is_compiling = self.settings.compile  # in the first step
        self._clock = time.perf_counter()
        self._saved = self.state.spent
        self._read_batches()
        self._synchronize(loss=0.0, seconds=0.0)  # for the target count of the first step

    def train_step(self):
        """One update of the parameters; a StepResult. UserError where the loss or the gradient is
        not finite: then nothing was updated. With float16 a gradient that is not finite is no
        error: the scaler skips the step and lowers its scale."""
        start = time.perf_counter()
        if self._evaluation_began is not None:  # with its sample and its save
            self.state.reserve = (start - self._evaluation_began) / 60
            self._evaluation_began = None
        scale = lr_scale(self.state.step, self.progress, self.settings)
        set_lr(self.optimizers, scale)
        loss = self._backward()
        self._update()
        self.state.step += 1
        self.state.tokens += self.tokens_per_step
        self._read_batches()
        seconds = time.perf_counter() - start
        if self._is_compiling:
            self._clock += seconds
        # Exclude compile time.
        loss, metrics = self._synchronize(loss, 0.0 if self._is_compiling else seconds)
        self._is_compiling = False
        lr = self.settings.learning_rate * scale
        return StepResult(loss, lr, self.tokens_per_step, seconds, metrics)

    def _backward(self):
        """The gradients of the step's micro-batches, of all processes; return the local loss
        sum."""
        losses = []
        for batch in self._batches:
            is_last = batch is self._batches[-1]
            with contextlib.nullcontext() if is_last else accumulate(self.step_loss):
                with autocast(self.device, self.dtype):
                    loss, _ = self.step_loss(batch)
                    # Normalise by the targets of the whole step, not of the micro-batch.
                    loss = loss / max(self._count, 1)
                # The processes' gradients are averaged, and have to be added.
                self.scaler.scale(loss * self.distributed.world_size).backward()
            losses.append(loss.detach())
        losses = torch.stack(losses).tolist()  # sync with the GPU once
        for batch, loss in zip(self._batches, losses, strict=True):
            rows = f"blocks {batch.rows.tolist()} of {self.settings.dataset}/train.bin"
            self._check_finite(loss, "the loss", f", in {rows}")
        return sum(losses)

    def _update(self):
        """Clip the gradients and step."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        limit = self.settings.grad_clip or math.inf
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not self.scaler.is_enabled():
            self._check_finite(norm, "the norm of the gradient")
        if math.isfinite(norm):  # if not, the scaler skips the step and lowers its scale
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)

    def _read_batches(self):
        """The micro-batches of the next step; none after the last one."""
        if self.state.step >= self.settings.max_iters:
            self._batches = []
            return
        n = self.settings.gradient_accumulation_steps
        first = self.state.step * n
        self._batches = [self.data.batches[first + k] for k in range(n)]

    def _synchronize(self, loss, seconds):
        """One all-reduce a step: (loss, metrics) of the step over all processes, and what they need
        for the next one: its target count, whether to stop, and the main process's times."""
        count = sum(batch.count for batch in self._batches)
        now = time.perf_counter()
        times = [self.state.minutes + seconds / 60, self.state.spent + (now - self._clock) / 60]
        times = [*times, self.state.reserve] if self.distributed.is_main else [0.0, 0.0, 0.0]
        self._clock = now
        values = torch.tensor([loss, count, self.stop.requested, *times], dtype=torch.float64)
        values = self.distributed.sum(torch.cat([values, self.objective.metric_sums()]))
        _, self._count, stop, *times = values[:6].tolist()
        self.state.minutes, self.state.spent, self.state.reserve = times
        sums = values[6:].tolist()
        self.stop_requested = bool(stop)
        # Losses are float32; more digits of their sum would mean nothing.
        loss, metrics = values[0].float().item(), self.objective.metrics(sums)
        return metrics.pop("loss", loss), metrics

    # -- evaluation --------------------------------------------------------------------------------

    def evaluate(self):
        """Measure the val loss, and the forgetting where there is data for it.

        Returns (metrics, is_best): figures for the log by name, and whether these are the best
        weights so far. UserError where a loss is not finite.
        """
        state = self.state
        self._evaluation_began = time.perf_counter()
        val_loss, metrics = self.mean_loss(self.data.val, self.objective.held_out)
        self._check_finite(val_loss, "the val loss")
        state.val_loss, state.evaluated = val_loss, state.step
        if self.data.forgetting is not None:
            metrics |= self._measure_forgetting()
        is_best = val_loss < state.best and not self._forgets_too_much
        state.best = val_loss if is_best else state.best
        state.stale = 0 if is_best else state.stale + 1
        return metrics, is_best

    def mean_loss(self, blocks, objective):
        """(mean, metrics) of an objective over a fixed set of batches, without dropout."""
        settings, distributed = self.settings, self.distributed
        batches = evaluation_batches(
            blocks,
            settings.batch_size,
            settings.eval_iters,
            distributed.rank,
            distributed.world_size,
            self.device,
        )
        self.model.eval()
        total = total_loss(objective, self.compiled, batches, self.device, self.dtype)
        if distributed.is_sharded:
            self._keep_step(len(range(0, len(blocks), settings.batch_size)[: settings.eval_iters]))
        self.model.train()
        values = torch.cat([torch.tensor(total, dtype=torch.float64), objective.metric_sums()])
        total, count, *sums = distributed.sum(values).tolist()
        return total / max(count, 1), objective.metrics(sums)

    @torch.no_grad()
    def _keep_step(self, n_batches):
        """Call a sharded model once more in a process that had one batch fewer than others."""
        distributed = self.distributed
        if distributed.rank >= distributed.world_size - -n_batches % distributed.world_size:
            with autocast(self.device, self.dtype):
                self.compiled(torch.zeros(1, 1, dtype=torch.int64, device=self.device))

    def _measure_forgetting(self):
        """The forgetting check: held-out perplexity on text of the stage before, as metrics."""
        loss, _ = self.mean_loss(self.data.forgetting, NextToken())
        self._check_finite(loss, f"the loss over {self.settings.guard_dataset}")
        if self.state.guard_start is None:
            self.state.guard_start = loss
        self.state.forgetting = math.exp(min(loss - self.state.guard_start, 99))
        return dict(guard_perplexity=math.exp(min(loss, 99)), forgetting=self.state.forgetting)

    @property
    def _forgets_too_much(self):
        return self.state.forgetting > (self.settings.max_forgetting or math.inf)

    def early_stop(self):
        """The reason for stopping before the last step, a message to print; None to continue."""
        if self._forgets_too_much:
            return (
                f"perplexity over {self.settings.guard_dataset} is {self.state.forgetting:.3f} "
                f"times what it was, more than max_forgetting="
                f"{self.settings.max_forgetting:g}: stopping; best/ is the last good one"
            )
        if self.settings.patience and self.state.stale >= self.settings.patience:
            return f"no better val loss in {self.state.stale} evaluations: stopping early"
        return None

    def _check_finite(self, value, name, where=""):
        """UserError for a value that is not finite, before weights that blew up can be saved."""
        if not math.isfinite(value):
            raise UserError(
                f"step {self.state.step}: {name} is {value}{where}; the last good checkpoint is "
                f"{self.settings.out_dir}; try a lower learning_rate, more warmup_iters, or "
                f"dtype=float32"
            )

    # -- checkpoints -------------------------------------------------------------------------------

    @property
    def save_is_due(self):
        """Whether the last save is save_minutes ago; the same in every process."""
        limit = self.settings.save_minutes
        return limit is not None and self.state.spent - self._saved >= limit

    def whole_model(self):
        """The model with all its weights. With FSDP it is a copy on the CPU in the main process,
        None in the others; every process must call it."""
        return self.distributed.whole_model(self.model)

    def save(self, folder, resumable=True):
        """Write a checkpoint. Every process must call it; the main one writes. resumable: with the
        TrainState."""
        if resumable:
            self._saved = self.state.spent
            batches = self.data.batches.state()
            self.state.capture(self.optimizers, self.scaler, self.distributed, batches)
        model = self.whole_model()
        if not self.distributed.is_main:
            return
        meta = dict(
            **to_json(from_json(self.data.train.meta)),
            step=self.state.step,
            tokens=self.state.tokens,
            val_loss=self.state.val_loss,
            best_val_loss=self.state.best,
            init_from=self.settings.init_from,
            dataset=self.settings.dataset,
            settings=self.settings.as_dict(),
            **self.metadata,
        )
        state = self.state.as_dict() if resumable else None
        try:
            checkpoint.save(folder, model, self.tokenizer, meta, state)
        except OSError as error:
            raise UserError(
                f"{folder}: the checkpoint could not be written ({error.strerror or error}); the "
                f"last good one is intact; make room, then continue with --init_from=resume"
            ) from None

    def load(self, state):
        """Continue from a TrainState; the model has the checkpoint's weights already. UserError
        where it does not fit the data or the optimizers."""
        folder, blocks = self.settings.out_dir, len(self.data.train)
        if state.blocks != blocks:
            raise UserError(
                f"{folder}: was trained on {state.blocks} blocks, now there are {blocks}: its data "
                f"order cannot be continued; start another run with --init_from={folder} "
                f"--out_dir=…"
            )
        batches = state.restore(self.optimizers, self.scaler, self.distributed, folder)
        if batches is not None:
            self.data.batches.restore(batches)
        self.state = state
        state.spent = max(state.spent, state.minutes)  # an older run did not count it


class StopOnSignal:
    """SIGINT (Ctrl-C) or SIGTERM ends the run after the current step, with a checkpoint; a second
    signal ends it at once. requested: whether this process got one."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step (again: at once) …", flush=True)


@contextlib.contextmanager
def out_of_memory_advice():
    """Within it, running out of GPU memory becomes a UserError with the settings to reduce."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            "the GPU is out of memory; turn one of: batch_size down (and "
            "gradient_accumulation_steps up by as much: the same training), "
            "activation_checkpointing on, block_size down (prepare the data again), n_layer or "
            "n_embd down; tools/plan.py says what fits"
        ) from None
