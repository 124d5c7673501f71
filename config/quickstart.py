"""Pretraining on the bundled sample, small enough for two CPU cores and a minute: quickstart.py.

    python data/prepare.py config/quickstart.py --input=data/sample/wiki.jsonl
    python train.py config/quickstart.py

It shows the tools at work; for a model of your own take config/cpu_small.py and your own text.
"""

out_dir = "out/quickstart"
dataset = "data/processed_quickstart"
block_size = 128  # an entry of the sample is about 120 tokens, a pair about 25
n_layer = 4
n_head = 3
n_embd = 192
batch_size = 8
gradient_accumulation_steps = 1  # 1,024 tokens a step: the sample has about 30,000
max_iters = 240  # eight passes over it
max_minutes = 1.5  # a slow machine stops here, its schedule ended as well
learning_rate = 2e-3  # twice the default: small models bear it, and there is little time
warmup_iters = 20
eval_interval = 60
eval_iters = 10
sample_prompt = "黄河"
sample_tokens = 48
