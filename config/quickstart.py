"""Pretraining on the bundled sample, small enough for two CPU cores and a minute: quickstart.py.

    python data/prepare.py config/quickstart.py --input=data/sample/wiki.jsonl
    python train.py config/quickstart.py

It demonstrates the tools; for your own model take config/cpu_small.py and your own text.
"""

out_dir = "out/quickstart"
dataset = "data/processed_quickstart"
block_size = 128  # an entry of the sample is about 120 tokens, a pair about 25
n_layer = 4
n_head = 3
n_embd = 192
batch_size = 8
gradient_accumulation_steps = 1  # 1,024 tokens per step: the sample has about 30,000
max_iters = 240  # eight epochs
max_minutes = 1.5  # a slow machine stops here, and the schedule ends, too
learning_rate = 2e-3  # twice the default: small models can take it, and time is short
warmup_iters = 20
eval_interval = 60
eval_iters = 10
sample_prompt = "黄河"
sample_tokens = 48
