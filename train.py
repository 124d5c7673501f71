"""Train: settings → data → model → optimizer → loop. One loop for pretraining and fine-tuning.

    python train.py config/train_config.py                 # pretrain
    python train.py config/train_config_sft.py             # fine-tune the result
    python train.py config/cpu_small.py --max_minutes=20   # on a laptop
    python train.py --out_dir=out/pretrain --init_from=resume
    torchrun --nproc_per_node=4 train.py config/train_config.py

The run's folder then holds the last checkpoint, best/ (lowest val loss), log.jsonl and samples.txt.
A step, an evaluation and a save are methods of minigpt/training/trainer.py; the learning-rate
schedule and the optimizers are in optim.py beside it, losses in losses.py, settings in settings.py.
"""

from pathlib import Path

from config.configurator import configure
from minigpt.common.errors import preflight, run
from minigpt.training.settings import check_ranges


def read_settings():
    """The settings, checked."""
    settings = configure(shared="all", doc=__doc__, quiet=True)
    check_ranges(settings)
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import torch

from minigpt.common.report import check_writable
from minigpt.data.prompts import stop_ids
from minigpt.evaluation.examples import Example, example_ids, first_held_out
from minigpt.inference.engine import Engine, Request
from minigpt.models import checkpoint
from minigpt.models.device import peak_flops, pick_dtype
from minigpt.rewards.expression import load_reward
from minigpt.rewards.judge import make_judge
from minigpt.tokenizer.chat_template import from_json
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.distributed import Distributed, lost_process
from minigpt.training.log import Log
from minigpt.training.objectives.distill import make_distill
from minigpt.training.objectives.dpo import make_dpo
from minigpt.training.objectives.grpo import make_grpo
from minigpt.training.objectives.next_token import NextToken
from minigpt.training.optim import make_optimizers
from minigpt.training.planning.dial import choose_recipe
from minigpt.training.setup import (
    attach_lora,
    choose_attention,
    choose_number_format,
    configure_torch,
    freeze,
    load_data,
    load_start,
    lock_run,
    make_model,
    provenance,
)
from minigpt.training.summary import print_end, print_summary, warn_if_long
from minigpt.training.trainer import Trainer, out_of_memory_advice


def main():
    settings = read_settings()
    distributed = Distributed()  # one process, or one of several under torchrun
    if distributed.is_restarted and checkpoint.exists(settings.out_dir):
        # As a user continues the run: its other settings are in the checkpoint.
        words = [f"--out_dir={settings.out_dir}", "--init_from=resume"]
        settings = configure(shared="all", argv=words, quiet=True)
    with lock_run(settings, distributed), out_of_memory_advice(), lost_process():
        train(settings, distributed)
    distributed.stop()


def train(settings, distributed):
    """The whole run of one process."""
    is_main, out_dir = distributed.is_main, Path(settings.out_dir)

    # -- settings: the checkpoint that the run starts from, if any, fixes some -----------------
    parent, state = load_start(settings, distributed.world_size)
    resumed = state is not None
    if is_main:
        print(settings.describe())
    device = distributed.start(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    configure_torch(settings)

    # -- data ----------------------------------------------------------------------------------
    tokenizer = parent.tokenizer if parent else load_tokenizer(settings.tokenizer)
    recipe = None
    if settings.budget_minutes and not resumed:
        recipe = choose_recipe(settings, tokenizer, distributed, dtype)
    data = load_data(settings, tokenizer, distributed)

    # -- model and objective -------------------------------------------------------------------
    model = make_model(settings, parent, tokenizer).to(device)
    objective, metadata = make_objective(
        settings, parent, model, tokenizer, data, dtype, distributed, resumed
    )
    metadata |= provenance(settings, parent)
    if settings.lora_rank and not resumed:  # a resumed run has its adapters
        attach_lora(model, settings, parent)
    freeze(model, settings)
    dtype = choose_number_format(settings, model, objective, data, distributed, dtype)
    choose_attention(model, settings, distributed, data.train, dtype)
    if settings.parallel == "fsdp":
        distributed.shard(model, dtype)
    torch.manual_seed(settings.seed + distributed.rank)  # each process has its own dropout

    # -- optimizer -----------------------------------------------------------------------------
    optimizers = make_optimizers(model, settings, device)
    trainer = Trainer(
        settings, distributed, model, tokenizer, objective, optimizers, data, dtype, metadata
    )
    if resumed:
        trainer.load(state)

    # -- loop ----------------------------------------------------------------------------------
    log = None
    if is_main:
        check_writable(out_dir / "log.jsonl")
        if not resumed:
            checkpoint.discard(out_dir)  # deletes the old run (--overwrite)
        log = make_log(out_dir, trainer, resumed)
        if recipe:
            (out_dir / "recipe.py").write_text(recipe, encoding="utf-8")
        print_summary(model, settings, data, parent, resumed)
        print(*data.notes, sep="\n", end="\n" * bool(data.notes), flush=True)
        steps = settings.max_iters - trainer.state.step
        tokens = steps * trainer.tokens_per_step / distributed.world_size  # of this device
        flops = tokens * model.flops_per_token(data.train.target_fraction)
        warn_if_long(settings, device, dtype, flops)
    loop(trainer, log, out_dir)


def make_objective(settings, parent, model, tokenizer, data, dtype, distributed, resumed):
    """(objective, metadata): what the stage minimises, and what config.json records of it. GRPO
    replaces data.batches."""
    if settings.stage == "dpo":
        return make_dpo(settings, parent, model, data, dtype, distributed, resumed)
    if settings.stage == "distill":
        return make_distill(settings, model, tokenizer, distributed.device)
    if settings.stage == "grpo":
        if settings.reward.endswith(".py") and distributed.is_main:
            print(f"the reward {settings.reward} is run as code")
        judge = (settings.judge_url, settings.judge_model, settings.judge_key_env)
        reward = load_reward(settings.reward, lambda: make_judge(*judge))
        return make_grpo(
            settings, parent, model, tokenizer, data, dtype, distributed, resumed, reward
        )
    return NextToken(), {}


def loop(trainer, log, out_dir):
    """Evaluate, save and take steps until the run ends. log: a Log; None in all but one process."""
    settings, state = trainer.settings, trainer.state
    trainer.begin()
    while True:
        is_done = trainer.progress >= 1
        is_due = is_done or state.step % settings.eval_interval == 0
        # After a signal save at once; the evaluation follows when the run is resumed.
        if is_due and state.evaluated != state.step and not trainer.stop_requested:
            metrics, is_best = trainer.evaluate()
            if is_best:
                trainer.save(out_dir / "best", resumable=False)
            model = trainer.whole_model()
            if log:
                log.evaluation(state, metrics, is_best)
                log.sample(state.step, write_sample(trainer, model))
        reason = trainer.early_stop()
        should_stop = is_done or reason or trainer.stop_requested
        if is_due or should_stop or trainer.save_is_due:
            trainer.save(out_dir)
        if should_stop:
            break
        result = trainer.train_step()
        if log:
            log.step(state, result, trainer.progress)
    if log:
        log.close()
        print_end(trainer, sample_example(trainer).prompt, reason)


def make_log(out_dir, trainer, resumed):
    """The run's Log; that of a resumed run continues after its last step."""
    peak = peak_flops(trainer.device)
    flops = trainer.model.flops_per_token(trainer.data.train.target_fraction)
    peak_rate = peak * trainer.distributed.world_size / flops if peak else None
    return Log(out_dir, trainer.settings, trainer.state.step if resumed else None, peak_rate)


def sample_example(trainer):
    """The Example that the run's samples continue or answer."""
    settings = trainer.settings
    if settings.origin("sample_prompt") == "default":
        prompt_format = from_json(trainer.data.train.meta)
        if example := first_held_out(settings.dataset, prompt_format):
            return example
    return Example(None, settings.sample_prompt, "")


def write_sample(trainer, model):
    """A prompt and how `model`, that of the trainer, continues it; "" where there is no prompt.
    With a reward: some held-out prompts, their answers and their rewards."""
    if samples := trainer.objective.held_out.samples:
        return "\n".join(samples)
    settings, tokenizer = trainer.settings, trainer.tokenizer
    prompt_format = from_json(trainer.data.train.meta)
    example = sample_example(trainer)
    if not example.prompt:
        return ""
    request = Request(
        example_ids(tokenizer, prompt_format, example),
        settings.sample_tokens,
        temperature=0.7,
        top_k=50,
        seed=settings.seed,  # separate generator: does not affect the training RNG
        stop_ids=stop_ids(tokenizer),
    )
    (ticket,) = Engine(model, tokenizer.n_vocab, n_slots=1).generate([request])
    model.train()
    return f"{example.prompt} → {tokenizer.decode(ticket.ids)}"


if __name__ == "__main__":
    run(main)
