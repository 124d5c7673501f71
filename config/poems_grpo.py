"""Poems by a reward: config/poems_sft.py's model learns to rhyme, which examples did not teach.

    python data/prepare_prompts.py config/poems_grpo.py --input=data/poems/pairs.jsonl \\
        --val_fraction=0.02
    python train.py config/poems_grpo.py
    python tools/evaluations-poems.py --out_dir=out/poems_grpo

Not tuned: after 25 steps it rhymes, but by repeating characters, and the forgetting check ends the
run (docs/en/rewards.md).
"""

out_dir = "out/poems_grpo"
init_from = "out/poems_sft"
stage = "grpo"
reward = "form+rhyme+0.5*heads+0.5*repetition"
dataset = "data/poems_prompts"
tokenizer = "out/poems_vocabulary.tiktoken"
block_size = 128
grpo_group = 8
grpo_tokens = 72
batch_size = 32  # prompts: 256 poems
gradient_accumulation_steps = 1
guard_dataset = "data/poems_sft_blocks"
max_forgetting = 1.2
max_iters = 150
optimizer = "adamw"
learning_rate = 2e-4
beta2 = 0.99
warmup_iters = 10
weight_decay = 0.0
eval_interval = 25
eval_iters = 4
