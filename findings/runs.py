"""Datasets and runs that several findings share, and their sizes at each scale."""

from findings.experiments import Classes, Data, Run, Scale, Source, Sums, Vocabulary

WIKI = Data("pretrain", Source("wiki"))
FEW_WIKI = Data("pretrain", Source("wiki", count="few_entries"))
BASE = Run(WIKI)
# Few texts and many epochs: the val loss rises long before the end.
OVERFIT = Run(FEW_WIKI, length=1.5)

QA = Data("tune", Source("qa"))
SFT = Run(QA, BASE)

VOCABULARY = Vocabulary(Classes("train"))
NEWS = Data("bbc", Classes("train"), tokenizer=VOCABULARY)
NEWS_BASE = Run(NEWS)
LABELS = Data("bbc_tune", Classes("pairs"), tokenizer=VOCABULARY)

DIGITS = Vocabulary(Sums(), "digits", pattern="smollm")  # each digit is a token
ADDITIONS = Data("sums", Sums(), tokenizer=DIGITS)
ADDED = Run(ADDITIONS)
PROMPTS = Data("reward", Sums(), tokenizer=DIGITS)

QUIET = ["--sample_prompt=", "--log_interval=5"]

# Fine-tuning as the findings were measured: eight blocks a step, as in pretraining.
EIGHT = ["--batch_size=8", "--learning_rate=5e-4", "--warmup_iters=20", "--dropout=0.1"]

# Learning from a reward on sums of the same shape at every scale.
REWARD = ["config/sums_grpo.py", "--guard_dataset=none", "--eval_iters=1", *QUIET]

# On two cores: about 110 steps of pretraining a minute.
CPU = Scale(
    name="cpu",
    words={
        "pretrain": ["config/cpu_small.py", "--eval_interval=24", "--eval_iters=8", *QUIET],
        "tune": [
            "config/cpu_small_sft.py",
            *EIGHT,
            "--eval_interval=10",
            "--eval_iters=12",
            *QUIET,
        ],
        "dpo": ["config/dpo.py", "--block_size=256", "--batch_size=8", "--warmup_iters=5", *QUIET],
        "bbc": ["config/bbc.py", *QUIET],
        "bbc_tune": ["config/bbc_sft.py", *QUIET],
        "sums": ["config/sums.py", *QUIET],
        "reward": REWARD,
    },
    steps=dict(pretrain=240, tune=150, dpo=50, bbc=500, bbc_tune=128, sums=600, reward=80),
    warmup=dict(pretrain=100, tune=20),
    counts=dict(
        sums=20_000,
        digits=261,  # a token for each byte, and the special ones
        sums_asked=400,
        few_entries=120,  # of wiki/: 20 steps of pretraining are an epoch
        few_pairs=1200,
        vocabulary=4096,
        answers=150,  # questions to answer, or entries to continue
        new_tokens=225,
        starts=8,  # beginnings of texts, and continuations of each
        texts_each=4,
        half=2,  # half of the layers
        low_rank=4,
        high_rank=64,
        shorter_block=128,
        shorter_batch=16,
        longer_block=512,
        longer_batch=4,
        tokens_a_step=2048,
    ),
)

# The 124M shape: about an evening per finding on one GPU, estimated from the steps; never run. One
# forward pass per step, so that batch_size is the whole batch.
WIDE = ["--n_layer=12", "--n_head=12", "--n_embd=768", "--learning_rate=1e-3"]
GPU = Scale(
    name="gpu",
    words={
        "pretrain": ["config/train_config.py", "--gradient_accumulation_steps=1", *QUIET],
        "tune": ["config/train_config_sft.py", "--eval_interval=20", *QUIET],
        "dpo": ["config/dpo.py", *QUIET],
        "bbc": ["config/bbc.py", *WIDE, *QUIET],
        "bbc_tune": ["config/bbc_sft.py", "--learning_rate=3e-4", *QUIET],
        "sums": CPU.words["sums"],
        "reward": CPU.words["reward"],
    },
    steps=dict(pretrain=8000, tune=300, dpo=100, bbc=500, bbc_tune=128, sums=600, reward=80),
    warmup=dict(pretrain=200, tune=20),
    counts=CPU.counts
    | dict(few_entries=20_000, answers=500, half=6, low_rank=16, high_rank=512)
    | dict(shorter_block=256, shorter_batch=64, longer_block=1024, longer_batch=16)
    | dict(tokens_a_step=16_384, endings=2000, error_texts=2000),
)

# Every finding in seconds; the figures mean nothing.
TINY = ["--block_size=128", "--n_layer=2", "--n_head=2", "--n_embd=16", "--batch_size=4"]
TINY += ["--eval_interval=2", "--eval_iters=1", "--warmup_iters=1", *QUIET]
TEST = Scale(
    name="test",
    words={
        "pretrain": ["config/cpu_small.py", *TINY],
        "tune": ["config/cpu_small_sft.py", *TINY],
        "dpo": ["config/dpo.py", *TINY],
        "bbc": ["config/bbc.py", *TINY, "--block_size=512"],  # a question has 750 characters
        "bbc_tune": ["config/bbc_sft.py", *TINY, "--block_size=512"],
        "sums": ["config/sums.py", *TINY, "--block_size=16"],
        "reward": [*REWARD, "--batch_size=4", "--eval_interval=2", "--warmup_iters=1"],
    },
    steps=dict(pretrain=6, tune=12, dpo=4, bbc=4, bbc_tune=4, sums=4, reward=2),
    warmup=dict(pretrain=1, tune=1),
    counts=dict(
        sums=200,
        digits=261,
        sums_asked=4,
        most=60,  # entries of every source
        few_entries=40,
        few_pairs=30,
        vocabulary=400,
        answers=4,
        new_tokens=12,
        starts=2,
        texts_each=1,
        half=1,
        low_rank=2,
        high_rank=8,
        shorter_block=64,
        shorter_batch=8,
        longer_block=256,
        longer_batch=2,
        tokens_a_step=2048,
    ),
)
SCALES = {scale.name: scale for scale in (CPU, GPU, TEST)}
