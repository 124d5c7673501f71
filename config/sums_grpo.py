"""Additions by a reward: config/sums.py's model, right at some 60 %, learns to be right.

    python data/prepare_prompts.py config/sums_grpo.py --input=out/sums.jsonl
    python train.py config/sums_grpo.py

Many prompts with few answers each: what one prompt teaches is noise, and here a prompt is short.
"""

out_dir = "out/sums_grpo"
init_from = "out/sums"
stage = "grpo"
reward = "exact"
dataset = "data/sums_prompts"
tokenizer = "out/digits.tiktoken"
block_size = 16
grpo_group = 4
grpo_tokens = 6
batch_size = 256  # prompts: 1,024 answers
gradient_accumulation_steps = 1
guard_dataset = "data/sums"  # only measured: these are the same sums
max_forgetting = None
max_iters = 400
optimizer = "adamw"
learning_rate = 2e-4  # a tenth of config/sums.py's
beta2 = 0.99  # few answers: the size of the gradient is known from many steps
warmup_iters = 10
weight_decay = 0.0
eval_interval = 25
eval_iters = 2  # 512 held-out prompts
