"""Poems by a reward: config/poems_sft.py's model, of whose poems 60 % rhyme, learns to rhyme.

    python data/prepare_prompts.py config/poems_grpo.py --input=data/poems/pairs.jsonl \\
        --val_fraction=0.02
    python train.py config/poems_grpo.py
    python tools/evaluations-poems.py --out_dir=out/poems_grpo

Without grpo_beta the model rhymes by repeating a few characters (docs/en/rewards.md).
"""

out_dir = "out/poems_grpo"
init_from = "out/poems_sft"
stage = "grpo"
reward = "form+rhyme+0.5*heads"
dataset = "data/poems_prompts"
tokenizer = "out/poems_vocabulary.tiktoken"
block_size = 128
grpo_group = 8
grpo_tokens = 72
grpo_beta = 0.1  # a poem may become e^10 times as likely for one more of reward, not without limit
batch_size = 8  # prompts: 64 poems
gradient_accumulation_steps = 4  # 256 poems a step
guard_dataset = "data/poems_sft_blocks"
max_forgetting = 1.12  # of the perplexity: 3 % more bits a character
max_iters = 60  # about 20 minutes on two cores
optimizer = "adamw"
learning_rate = 2.5e-4
beta2 = 0.99
warmup_iters = 5
weight_decay = 0.0
eval_interval = 15
eval_iters = 16  # 128 held-out prompts
