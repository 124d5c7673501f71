"""Additions of two and three digits: what config/sums_grpo.py starts from.

    python data/prepare_prompts.py --make=sums --input=out/sums.jsonl
    python data/train_tokenizer.py --input=out/sums.jsonl --output=out/digits --vocab_size=261 \\
        --pattern=smollm
    python data/prepare_sft.py config/sums.py --input=out/sums.jsonl
    python train.py config/sums.py
"""

out_dir = "out/sums"
dataset = "data/sums"
tokenizer = "out/digits.tiktoken"  # bytes: each digit is a token
block_size = 16  # 123+456= and the answer
layout = "pad"
n_layer = 2
n_head = 4
n_embd = 128
batch_size = 64
gradient_accumulation_steps = 1
max_iters = 600
learning_rate = 2e-3
warmup_iters = 50
eval_interval = 200
eval_iters = 10
sample_tokens = 8
