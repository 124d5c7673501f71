"""Additions by a reward: config/sums.py's model, right at some 60 %, learns to be right.

python data/prepare_prompts.py config/sums_grpo.py --input=out/sums.jsonl
python train.py config/sums_grpo.py
"""

out_dir = "out/sums_grpo"
init_from = "out/sums"
stage = "grpo"
reward = "exact"
dataset = "data/sums_prompts"
tokenizer = "out/digits.tiktoken"
block_size = 16
grpo_tokens = 6
grpo_group = 16
batch_size = 32  # prompts: 512 answers
gradient_accumulation_steps = 1
grpo_steps = 1
guard_dataset = "data/sums"
max_forgetting = None
max_iters = 400
optimizer = "adamw"
learning_rate = 1e-4
warmup_iters = 10
weight_decay = 0.0
schedule = "constant"
eval_interval = 20
eval_iters = 16
