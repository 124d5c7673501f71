"""GRPO: rollouts by the engine, the loss against trl's and by hand, a toy whose optimum is known,
and runs of train.py with it."""

# ruff: noqa: F811 (a fixture that is imported)

import math
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forks import forked, needs_fork
from test_dpo import assert_same_weights, log_of, train  # noqa: F401
from tiny_run import save_run, write_jsonl

from data_utils import Batches
from minigpt.common.errors import UserError
from minigpt.data.block_format import IS_START
from minigpt.models import checkpoint
from minigpt.rewards.expression import Score
from minigpt.training.objectives.dpo import target_logprobs
from minigpt.training.objectives.grpo import GRPO, HeldOutReward
from minigpt.training.objectives.rollouts import (
    AnswerWriter,
    Prompts,
    RolloutBatch,
    Rollouts,
    advantages_of,
    slots_for,
    tokens_at,
)
from minigpt.training.trainer import Trainer
from model import GPT, GPTConfig

EOT, PAD, MARK = 256, 257, 258
SIZE = 24


def prompts(n, seed):
    """(tokens, mask, records) of n prompts of unlike lengths, a block each."""
    dice = np.random.default_rng(seed)
    tokens = np.full((n, SIZE), PAD)
    mask = np.zeros(tokens.shape, np.uint8)
    mask[:, 0] = IS_START
    records = []
    for i in range(n):
        ids = [*dice.integers(97, 123, dice.integers(1, 9)).tolist(), MARK]
        tokens[i, : len(ids)] = ids
        mask[i, len(ids)] = IS_START
        records.append(dict(id=str(i), prompt=bytes(ids[:-1]).decode(), answer="abc"))
    return tokens, mask, records


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_blocks, byte_tokenizer):
    path = tmp_path_factory.mktemp("data") / "prompts"
    made = [prompts(12, 1), prompts(5, 2)]
    about = dict(layout="pad", prompt_format="qa", kind="prompts")
    write_blocks(path, byte_tokenizer, *(each[:2] for each in made), **about)
    for split, each in zip(("train", "val"), made, strict=True):
        write_jsonl(path / f"{split}.jsonl", each[2])
    return path


class Share:
    """A reward: the share of letters from a to m, and its half as another part."""

    def __init__(self):
        self.asked = []

    def scores(self, items):
        self.asked += items
        shares = [sum("a" <= c <= "m" for c in text) / max(1, len(text)) for _, text, _ in items]
        return [Score(share, {"share": share, "half": share / 2}) for share in shares]


def knobs(**more):
    usual = dict(
        seed=5,
        gradient_accumulation_steps=1,
        grpo_group=4,
        grpo_tokens=6,
        grpo_steps=1,
        grpo_beta=0.0,
        grpo_clip=0.2,
        grpo_clip_high=0.28,
        grpo_by_length=False,
        grpo_by_std=False,
    )
    return SimpleNamespace(**(usual | more))


@pytest.fixture
def model(tiny_model):
    return tiny_model(1, padded_vocab_size=320, block_size=SIZE)


def rollouts(folder, model, tokenizer, settings, size=3, reward=None, reference=None):
    split = Prompts(folder, "train", tokenizer, SIZE)
    writer = AnswerWriter(model, tokenizer, reward or Share(), settings.grpo_tokens)
    order = Batches(split, size, settings.seed)
    return Rollouts(order, split, writer, settings, reference)


def moved(model, by, seed=9):
    """Move the weights a little, at random, as a step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)


# -- rollouts --------------------------------------------------------------------------------------


def test_prompts_are_read_with_their_records(folder, byte_tokenizer):
    split = Prompts(folder, "train", byte_tokenizer, SIZE)
    tokens, _, records = prompts(12, 1)
    assert len(split) == 12 and split.records == records
    for row in range(12):
        ids = split.ids(row)
        assert ids == tokens[row][tokens[row] != PAD].tolist() and ids[-1] == MARK
    split.answers = 100, 3
    assert split.tokens_per_block == 3 * SIZE


def test_a_folder_without_its_records_is_refused(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (copy / "train.jsonl").write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match="not a record for each of 12 prompts"):
        Prompts(copy, "train")


def test_the_engine_records_what_the_model_gives(folder, model, byte_tokenizer):
    """Also the stop id that ended an answer, which is no part of the text but is learned."""
    reward = Share()
    made = rollouts(folder, model, byte_tokenizer, knobs(), 12, reward)
    batch = made[0]
    assert len(reward.asked) == 48
    logprobs = target_logprobs(model, batch, byte_tokenizer.n_vocab)
    torch.testing.assert_close(logprobs, batch.logprobs, atol=1e-4, rtol=1e-4)
    ends = [row[row != PAD][-1].item() for row in batch.x]
    answers = made.writer.write(made.prompts, range(12), range(12))
    assert {answer.is_cut for answer in answers} <= {True, False}
    for answer in answers:
        assert answer.is_cut == (answer.ids[-1] not in (EOT, PAD, 260))
        assert len(answer.ids) == len(answer.logprobs) <= 6
    assert batch.count == len(ends) == len(batch.advantages)


def test_the_cache_of_the_answers_is_bounded(model, monkeypatch):
    a_slot = 2 * 2 * SIZE * 32 * 4  # keys and values of two layers of width 32
    for size, slots in ((2**30, 128), (5 * a_slot, 5), (1, 1)):
        monkeypatch.setattr("minigpt.training.objectives.rollouts.CACHE", size)
        assert slots_for(model) == slots


def test_answers_of_a_group_are_of_one_prompt_and_advantages_sum_to_zero(
    folder, model, byte_tokenizer
):
    batch = rollouts(folder, model, byte_tokenizer, knobs())[0]
    rows = batch.rows.reshape(-1, 4)
    assert (rows == rows[:, :1]).all()
    advantages = batch.advantages.view(-1, 4)
    assert advantages.sum(dim=1).abs().max() < 1e-6 and advantages.abs().max() > 0
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.5]])
    by_hand = torch.tensor([[0.625, -0.375, -0.375, 0.125]])
    torch.testing.assert_close(advantages_of(rewards), by_hand)
    std = math.sqrt((0.625**2 + 2 * 0.375**2 + 0.125**2) / 3)
    torch.testing.assert_close(advantages_of(rewards, True), by_hand / (std + 1e-4))


class Constant:
    """A reward that is the same for all prompts but those that begin with a letter from n on."""

    def scores(self, items):
        return [
            Score(float(len(text)) if prompt[0] >= "n" else 1.0, {"constant": 1.0})
            for prompt, text, _ in items
        ]


class FirstLetter:
    """A reward of two parts: the length, and twice the first letter's number, which only this
    letter is credited with."""

    def scores(self, items):
        found = []
        for _, text, _ in items:
            first = ord(text[0]) % 7 / 7 if text else 0.0
            parts = {"length": float(len(text)), "first": first}
            score = Score(len(text) + 2 * first, parts, {"first": (2 * first, [0])})
            found.append(score)
        return found


def test_a_part_is_credited_to_its_characters_alone(folder, model, byte_tokenizer):
    made = rollouts(folder, model, byte_tokenizer, knobs(), 3, FirstLetter())
    batch = made[0]
    ends = batch.loss_mask.sum(1).cumsum(0).tolist()
    firsts, lengths = [], []
    for begin, end in zip([0, *ends], ends, strict=False):
        ids, credits = batch.y.flatten()[batch.target_indices][begin:end], batch.credits[begin:end]
        there = torch.tensor(tokens_at(byte_tokenizer, ids.tolist(), [0]))
        assert (credits[~there] == 0).all()
        firsts.append(credits[there][:1].sum())
        text = byte_tokenizer.decode([i for i in ids.tolist() if i != EOT])
        lengths.append(len(text.rstrip("\ufffd")))
    assert torch.stack(firsts).abs().max() > 0.1
    texts = torch.tensor(lengths, dtype=torch.float32).view(-1, 4)
    torch.testing.assert_close(batch.advantages.view(-1, 4), advantages_of(texts))


def test_credits_by_hand(even):
    batch = batch_of([[1.0, 1.0], [1.0]], [1.0, -1.0])
    batch.credits = torch.tensor([0.0, 3.0, -3.0])
    loss, _ = objective_of(grpo_tokens=10)(even, batch)
    loss.backward()
    plain = batch_of([[1.0, 1.0], [1.0]], [1.0, -1.0])
    other, _ = objective_of(grpo_tokens=10)(even, plain)
    assert loss.item() == pytest.approx(-(1 + 4 - 4) / 10, abs=1e-5)
    assert other.item() == pytest.approx(-(1 + 1 - 1) / 10, abs=1e-5)


@pytest.mark.parametrize(
    "text, places, found",
    [
        ("ab", [1], [False, True, False]),
        ("春a", [0], [True] * 3 + [False] * 2),
        ("", [0], [False]),
        ("ab", [], [False] * 3),
    ],
)
def test_the_tokens_of_characters(byte_tokenizer, text, places, found):
    assert tokens_at(byte_tokenizer, [*byte_tokenizer.encode(text), EOT], places) == found


def test_groups_without_a_difference_are_left_out_and_counted(folder, model, byte_tokenizer):
    made = rollouts(folder, model, byte_tokenizer, knobs(), 12, Constant())
    batch, objective = made[0], GRPO(knobs(), made.writer)
    flat = sum(record["prompt"][0] < "n" for record in made.prompts.records)
    assert 0 < flat < 12
    kept = {made.prompts.records[row]["prompt"][0] for row in batch.rows}
    assert min(kept) >= "n" and batch.count <= 4 * (12 - flat)
    objective(model, batch)
    metrics = objective.metrics(objective.metric_sums().tolist())
    assert metrics["flat"] == pytest.approx(1 - batch.count / 48)
    assert metrics["length"] <= 6 and metrics["clipped"] == 0 and metrics["rollouts"] > 0


def test_a_batch_without_a_difference_has_no_gradient(folder, model, byte_tokenizer):
    class Same:
        def scores(self, items):
            return [Score(1.0, {"same": 1.0}) for _ in items]

    made = rollouts(folder, model, byte_tokenizer, knobs(), 3, Same())
    batch, objective = made[0], GRPO(knobs(), made.writer)
    loss, count = objective(model, batch)
    assert (loss.item(), count, batch.count) == (0, 0, 0)
    loss.backward()
    assert all((weight.grad == 0).all() for weight in model.parameters())
    metrics = objective.metrics(objective.metric_sums().tolist())
    assert metrics["flat"] == 1 and metrics["reward"] == 1


def test_a_phase_is_written_once_and_depends_on_no_batch_size(folder, model, byte_tokenizer):
    """Two steps of two micro-batches, and four steps of one: the same answers."""
    reward = Share()
    settings = knobs(grpo_steps=2, gradient_accumulation_steps=2)
    one = rollouts(folder, model, byte_tokenizer, settings, 2, reward)
    first = [one[i] for i in range(4)]
    assert len(reward.asked) == 2 * 2 * 2 * 4
    one[4]
    assert len(reward.asked) == 2 * 32
    whole = rollouts(folder, model, byte_tokenizer, knobs(), 8)[0]
    assert whole.rows.tolist() == np.concatenate([batch.rows for batch in first]).tolist()
    sums = sum(batch.sums[:-3] for batch in first)  # but for the seconds
    torch.testing.assert_close(sums[:7], whole.sums[:-3][:7])


def test_a_state_continues_a_phase(folder, model, byte_tokenizer):
    settings = knobs(grpo_steps=2)
    one = rollouts(folder, model, byte_tokenizer, settings)
    one[0]
    state = one.state()
    second = one[1]
    other = rollouts(folder, model, byte_tokenizer, settings, reward=Constant())
    other.restore(state)
    again = other[1]  # nothing is written: the reward would be another
    for name in ("x", "logprobs", "advantages", "sums", "loss_mask"):
        assert torch.equal(getattr(second, name), getattr(again, name)), name
    assert other.writer.parts == ["share", "half"]


def test_parts_may_not_change(folder, model, byte_tokenizer):
    class Changing:
        def scores(self, items):
            return [Score(1.0, {text[:1]: 1.0}) for _, text, _ in items]

    with pytest.raises(UserError, match="every answer needs the same ones"):
        rollouts(folder, model, byte_tokenizer, knobs(), 12, Changing())[0]


# -- the loss --------------------------------------------------------------------------------------


@pytest.fixture
def even(tiny_model):
    """A model of even probabilities over 259 ids."""
    model = tiny_model(padded_vocab_size=320, block_size=SIZE, tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def batch_of(drawn, advantages, reference=None):
    """A RolloutBatch for a model of even probabilities over 259 ids: `drawn` are lists of the
    ratios of its probability now to that when drawn, of the tokens of each answer."""
    tokens = torch.full((len(drawn), 8), 65)
    mask = torch.zeros(tokens.shape, dtype=torch.uint8)
    for row, ratios in zip(mask, drawn, strict=True):
        row[2 : 2 + len(ratios)] = 1
    now = -math.log(259)
    logprobs = torch.tensor([now - math.log(ratio) for ratios in drawn for ratio in ratios])
    if reference is not None:
        reference = now + torch.tensor([gap for gaps in reference for gap in gaps])
    sums = torch.zeros(8, dtype=torch.float64)
    advantages = torch.tensor(advantages)
    return RolloutBatch.made(tokens, mask, logprobs, None, reference, advantages, sums)


def objective_of(**more):
    engine = SimpleNamespace(n_vocab=259)
    writer = SimpleNamespace(parts=[], engine=engine, metrics=lambda sums: dict(reward=0.0))
    return GRPO(knobs(**more), writer)


def test_loss_by_hand(even):
    """Clipped are 1.5 upwards at a good answer and 0.5 downwards at a bad one; not 0.5 at the good
    and 1.5 at the bad: those are mistakes that may be mended."""
    batch = batch_of([[1.0, 1.5, 0.5], [0.5, 1.5]], [2.0, -1.0])
    objective = objective_of(grpo_tokens=10)
    loss, count = objective(even, batch)
    by_hand = -(2 * (1 + 1.28 + 0.5) - (0.8 + 1.5)) / 10
    assert count == 2 and loss.item() == pytest.approx(by_hand, abs=1e-5)
    metrics = objective.metrics(objective.metric_sums().tolist())
    assert metrics["clipped"] == pytest.approx(2 / 5)
    by_length = -(2 * (1 + 1.28 + 0.5) / 3 - (0.8 + 1.5) / 2)
    loss, _ = objective_of(grpo_by_length=True)(even, batch)
    assert loss.item() == pytest.approx(by_length, abs=1e-5)


def test_kl_by_hand(even):
    gaps = [[0.2, -0.4], [0.0]]
    batch = batch_of([[1.0, 1.0], [1.0]], [1.0, -1.0], gaps)
    objective = objective_of(grpo_beta=0.3, grpo_tokens=10)
    loss, _ = objective(even, batch)
    kl = sum(math.exp(gap) - 1 - gap for row in gaps for gap in row)  # the weights are 1
    assert loss.item() == pytest.approx((-(2 - 1) + 0.3 * kl) / 10, abs=1e-5)
    metrics = objective.metrics(objective.metric_sums().tolist())
    assert metrics["kl"] == pytest.approx(kl / 3, abs=1e-5)


def test_what_cuda_pads_counts_for_nothing(even):
    batch = batch_of([[1.0, 1.5], [0.5]], [2.0, -1.0], [[0.1, 0.2], [0.3]])
    padded = batch.padded(64)
    extra = len(padded.target_indices) - len(batch.target_indices)
    assert extra > 0
    for name in ("logprobs", "reference"):
        setattr(padded, name, torch.nn.functional.pad(getattr(batch, name), (0, extra)))
    one, two = objective_of(grpo_beta=0.1), objective_of(grpo_beta=0.1)
    torch.testing.assert_close(one(even, batch)[0], two(even, padded)[0])
    assert one.metric_sums().tolist() == pytest.approx(two.metric_sums().tolist())


@pytest.mark.parametrize(
    "kind, more",
    [
        ("dr_grpo", dict()),
        ("dr_grpo", dict(grpo_beta=0.2, grpo_clip=0.1, grpo_clip_high=0.5)),
        ("grpo", dict(grpo_by_length=True, grpo_by_std=True, grpo_beta=0.05)),
    ],
)
def test_equals_trl(tmp_path, folder, byte_tokenizer, tiny_model, kind, more):
    """The loss of trl's GRPOTrainer over the same rollouts on the models exported to Hugging
    Face, after the weights have moved."""
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from minigpt.interop.hf_export import write_hf

    # trl knows no ids above the vocabulary, so the models have none.
    shape = dict(
        padded_vocab_size=320, block_size=SIZE, position="rope", mlp="swiglu", tie_embeddings=False
    )
    ours = tiny_model(1, **shape)
    reference = tiny_model(2, **shape)
    settings = knobs(**more)
    with_kl = (reference, torch.float32) if settings.grpo_beta else None
    batch = rollouts(folder, ours, byte_tokenizer, settings, 6, None, with_kl)[0]
    moved(ours, 0.01)
    run = save_run(tmp_path / "run", ours, byte_tokenizer, "qa")
    write_hf(tmp_path / "hf", checkpoint.load(run), "float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    config = trl.GRPOConfig(
        str(tmp_path / "trl"),
        loss_type=kind,
        beta=settings.grpo_beta,
        epsilon=settings.grpo_clip,
        epsilon_high=settings.grpo_clip_high,
        max_completion_length=settings.grpo_tokens,
        num_generations=4,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = trl.GRPOTrainer(
        theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([dict(prompt="a")] * 4),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "hf"),
    )
    loss, count = GRPO(settings, SimpleNamespace(parts=[], engine=SimpleNamespace(n_vocab=None)))(
        ours, batch
    )
    inputs = as_trl(batch)
    theirs.eval()
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        expected = float(trainer._compute_loss(theirs, inputs))
    assert batch.count > 8 and expected != 0
    assert loss.item() / count == pytest.approx(expected, abs=1e-5)


def as_trl(batch):
    """The inputs of trl's loss: prompts padded on the left, completions on the right."""
    is_answer = torch.roll(batch.loss_mask, 1, dims=1)  # (B, T)
    first = is_answer.int().argmax(dim=1)
    lengths = is_answer.sum(dim=1)
    n, longest, most = len(batch.x), int(first.max()), int(lengths.max())
    prompt, completion = torch.full((n, longest), PAD), torch.full((n, most), PAD)
    old, reference = torch.zeros(n, most), torch.zeros(n, most)
    at = 0
    for i in range(n):
        k, m = int(first[i]), int(lengths[i])
        prompt[i, longest - k :] = batch.x[i, :k]
        completion[i, :m] = batch.x[i, k : k + m]
        old[i, :m] = batch.logprobs[at : at + m]
        if batch.reference is not None:
            reference[i, :m] = batch.reference[at : at + m]
        at += m
    columns = torch.arange(most)
    return dict(
        prompt_ids=prompt,
        prompt_mask=(torch.arange(longest) >= longest - first[:, None]).long(),
        completion_ids=completion,
        completion_mask=(columns < lengths[:, None]).long(),
        advantages=batch.advantages,
        old_per_token_logps=old,
        ref_per_token_logps=reference,
        num_items_in_batch=lengths.sum(),
    )


# -- a toy whose optimum is known ------------------------------------------------------------------


class Arms:
    """Two arms: an answer of one ASCII character is worth 1, any other token 0."""

    def scores(self, items):
        return [Score(float(text.isascii() and text != ""), {"ascii": 0.0}) for _, text, _ in items]


def ascii_share(model, split):
    """The probability that the model takes the better arm after the first prompt."""
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([split.ids(0)])))[0, -1, :261]
    return float(logits.softmax(-1)[:128].sum())


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_a_two_armed_bandit_reaches_its_optimum(folder, byte_tokenizer, even, beta):
    """Without KL: the better arm alone. With it: what maximises (G − 1)/G · E[reward] − β ·
    KL(π ‖ reference), for the group's mean holds the answer itself: its odds are those of the
    reference times exp((G − 1)/(G β))."""
    settings = knobs(grpo_tokens=1, grpo_group=16, grpo_beta=beta)
    reference = checkpoint_copy(even), torch.float32
    made = rollouts(folder, even, byte_tokenizer, settings, 4, Arms(), reference if beta else None)
    objective = GRPO(settings, made.writer)
    optimizer = torch.optim.Adam([even.lm_head.weight], lr=0.02 if beta else 0.05)
    start = ascii_share(even, made.prompts)
    assert start == pytest.approx(128 / 261, abs=1e-6)
    shares = []
    for step in range(60):
        batch = made[step]
        loss, count = objective(even, batch)
        optimizer.zero_grad()
        (loss / max(count, 1)).backward()
        optimizer.step()
        shares.append(ascii_share(even, made.prompts))
    if not beta:
        assert shares[-1] > 0.97
        return
    odds = start / (1 - start) * math.exp(15 / 16 / beta)
    optimum = odds / (1 + odds)
    assert 0.6 < optimum < 0.9
    assert np.mean(shares[-20:]) == pytest.approx(optimum, abs=0.06)


def checkpoint_copy(model):
    other = GPT(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_the_held_out_reward_is_the_same_for_the_same_weights(folder, model, byte_tokenizer):
    split = Prompts(folder, "val", byte_tokenizer, SIZE)
    writer = AnswerWriter(model, byte_tokenizer, Share(), 6)
    held_out = HeldOutReward(split, writer, 3, (checkpoint_copy(model), torch.float32))
    total, count = held_out(model, split.batch(np.arange(5)))
    metrics = held_out.metrics(held_out.metric_sums().tolist())
    assert count == 5 and metrics["reward"] == pytest.approx(-total.item() / 5)
    assert metrics["reward_half"] == pytest.approx(metrics["reward"] / 2)
    assert abs(metrics["kl"]) < 1e-6 and len(held_out.samples) == 4
    assert "(reward " in held_out.samples[0] and "share " in held_out.samples[0]
    again = [held_out(model, split.batch(np.array([i])))[0].item() for i in range(5)]
    assert sum(again) == pytest.approx(total.item(), abs=1e-5)


# -- runs ------------------------------------------------------------------------------------------

TINY = """
    --stage=grpo --batch_size=4 --gradient_accumulation_steps=1 --max_iters=12 --eval_interval=4
    --eval_iters=2 --log_interval=1 --warmup_iters=0 --learning_rate=3e-3 --device=cpu
    --grpo_group=4 --grpo_tokens=4 --optimizer=adamw
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    torch.manual_seed(7)
    model = GPT(GPTConfig(320, SIZE, n_layer=2, n_head=2, n_embd=32))
    return save_run(tmp_path_factory.mktemp("base") / "sft", model, byte_tokenizer, "qa")


@pytest.fixture(scope="module")
def guard_folder(tmp_path_factory, write_blocks, byte_tokenizer):
    """Ordinary blocks: of text that counts up."""
    dice = np.random.default_rng(3)
    tokens = 97 + (dice.integers(0, 20, (8, 1)) + np.arange(SIZE)) % 26
    blocks = tokens, np.ones((8, SIZE), np.uint8)
    return write_blocks(tmp_path_factory.mktemp("guard") / "sft", byte_tokenizer, blocks, blocks)


@pytest.fixture
def flags(folder, base, tmp_path):
    reward = tmp_path / "ascii.py"
    reward.write_text(
        "def reward(prompt, answer, record):\n"
        "    return {'ascii': float(answer.isascii()), 'long': 0.1 * len(answer)}\n",
        encoding="utf-8",
    )
    return [*TINY.split(), f"--dataset={folder}", f"--init_from={base}", f"--reward={reward}"]


def test_a_run_learns_what_is_rewarded(tmp_path, train, flags, base):
    out = tmp_path / "grpo"
    size = ["--max_iters=24", "--eval_interval=8", "--batch_size=8", "--grpo_group=8"]
    output = train(*flags, *size, f"--out_dir={out}", "--learning_rate=1e-2")
    log = log_of(out)
    judged = [line for line in log if "val_loss" in line]
    assert judged[0]["val_loss"] == pytest.approx(-judged[0]["reward"], abs=1e-6)
    assert judged[0]["kl"] == pytest.approx(0, abs=1e-5) and judged[-1]["kl"] > 0.001
    steps = [line for line in log if "loss" in line]
    rewards = [line["reward_ascii"] for line in steps]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.2, rewards
    wanted = {"reward", "reward_ascii", "reward_long", "flat", "entropy", "length", "clipped"}
    assert all(wanted <= set(line) for line in steps)
    assert steps[0]["entropy"] == pytest.approx(math.log(261), abs=0.2)
    samples = (out / "samples.txt").read_text(encoding="utf-8", errors="replace")
    assert samples.count("(reward ") == 4 * 4 and "ascii 1.00" in samples
    assert "ascii.py is run as code" in output and "12 train and 5 val prompts" in output
    meta = checkpoint.read_meta(out)
    assert meta["reference_hash"] == checkpoint.weights_hash(base)


@needs_fork
@pytest.mark.parametrize("more", [[], ["--grpo_steps=3", "--grpo_beta=0.1", "--lora_rank=4"]])
def test_killed_and_resumed_is_the_run_that_was_not(
    tmp_path, train, monkeypatch, flags, guard_folder, more
):
    """Also within a phase, whose answers the present weights would not write again."""
    flags = [*flags, f"--guard_dataset={guard_folder}", "--max_forgetting=none", *more]
    train(*flags, f"--out_dir={tmp_path / 'whole'}")
    step = Trainer.train_step

    def killed(trainer):
        if trainer.state.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        words = [*flags, f"--out_dir={tmp_path / 'cut'}"]
        ((code, output),) = forked(lambda: train(*words), tmp_path)
    assert code == -signal.SIGKILL, output
    assert checkpoint.load_state(tmp_path / "cut")["step"] == 4
    train(f"--out_dir={tmp_path / 'cut'}", "--init_from=resume")
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    if not more:
        assert_same_weights(tmp_path / "cut", tmp_path / "whole")


def test_accumulated_batches_are_one_batch(tmp_path, train, flags):
    size = ["--max_iters=3"]
    train(*flags, *size, f"--out_dir={tmp_path / 'one'}", "--batch_size=6")
    parts = ["--eval_iters=3", "--batch_size=2", "--gradient_accumulation_steps=3"]
    train(*flags, *size, *parts, f"--out_dir={tmp_path / 'three'}")
    for one, three in zip(log_of(tmp_path / "one"), log_of(tmp_path / "three"), strict=True):
        assert one == pytest.approx(three, abs=1e-4)
    assert_same_weights(tmp_path / "one", tmp_path / "three", atol=1e-4, rtol=1e-3)


@needs_fork
def test_two_processes_are_one(tmp_path, train, flags):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    flags = [*flags, "--max_iters=3", "--eval_interval=3", "--eval_iters=1"]
    train(*flags, f"--out_dir={whole}")
    words = [*flags, "--batch_size=2", "--eval_iters=2"]
    results = forked(lambda: train(*words, f"--out_dir={halves}"), tmp_path, world_size=2)
    assert [code for code, _ in results] == [0, 0], results
    for one, two in zip(log_of(whole), log_of(halves), strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    assert_same_weights(whole, halves, atol=1e-4, rtol=1e-3)


def test_a_run_that_forgets_is_stopped(tmp_path, train, flags, guard_folder):
    out = tmp_path / "grpo"
    wreck = ["--learning_rate=0.1", f"--guard_dataset={guard_folder}", "--max_forgetting=1.05"]
    output = train(*flags, *wreck, f"--out_dir={out}")
    assert "more than max_forgetting=1.05: stopping" in output
    judged = [line for line in log_of(out) if "val_loss" in line]
    assert judged[-1]["forgetting"] > 1.05 and judged[-1]["step"] < 12


@pytest.mark.parametrize(
    "words, message",
    [
        (["--init_from=scratch"], "init_from=scratch: expected the folder of a run that answers"),
        (["--stage=lm"], "expected --stage=grpo with it"),
        (["--reward="], "expected what stage=grpo rewards"),
        (["--reward=exact+"], "cannot be read from character 6 on"),
        (["--reward=exakt"], "no reward exakt; expected a sum of exact, number"),
        (["--reward=missing.py"], "missing.py: no such file"),
        (["--reward=judge"], "--judge_url: missing"),
        (["--grpo_group=1"], "grpo_group=1: expected at least 2"),
    ],
)
def test_what_cannot_be(tmp_path, train, flags, words, message):
    assert message in train.fails(*flags, *words, f"--out_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_reward_that_fails_names_prompt_and_answer(tmp_path, train, flags):
    reward = tmp_path / "bad.py"
    reward.write_text("def reward(prompt, answer, record):\n    return record['miles']\n")
    error = train.fails(*flags, f"--reward={reward}", f"--out_dir={tmp_path / 'out'}")
    assert error.startswith("reward bad: KeyError: 'miles' (bad.py:2); the prompt: ")
    assert "; the answer: " in error and error.count("\n") == 1


def test_other_data_and_another_prompt_format(tmp_path, train, flags, guard_folder, base):
    out = f"--out_dir={tmp_path / 'out'}"
    assert "holds no prompts, which --stage=grpo needs" in train.fails(
        *flags, f"--dataset={guard_folder}", out
    )
    plain = save_run(
        tmp_path / "plain", checkpoint.load(base).model, checkpoint.load(base).tokenizer, "plain"
    )
    assert "its prompts have the format qa" in train.fails(*flags, f"--init_from={plain}", out)
    missing = train.fails(*flags, f"--dataset={tmp_path / 'none'}", out)
    assert "no prepared data here; run python data/prepare_prompts.py --input=PATH" in missing
