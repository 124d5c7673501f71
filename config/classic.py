"""The classic recipe of the first wiki MiniGPT: GPT-2's shape and vocabulary, one text per block,
AdamW, cosine. For comparison; the default learns the same text in a fraction of the time.

    python data/prepare.py config/classic.py --input=YOUR_TEXTS
    python train.py config/classic.py

The `pad` layout truncates each text after the last sentence that fits; EOT is no target.
"""

out_dir = "out/classic"
dataset = "data/classic"
tokenizer = "gpt2"  # about two tokens per Chinese character
layout = "pad"
block_size = 512
position = "learned"
norm = "layernorm"
mlp = "gelu"
qk_norm = False
bias = False  # 123.59M weights with 50,304 embedding rows, without positions
norm_eps = 1e-5
optimizer = "adamw"
learning_rate = 6e-4
min_lr_ratio = 0.1
warmup_iters = 2000
max_iters = 200_000
batch_size = 12
gradient_accumulation_steps = 1
