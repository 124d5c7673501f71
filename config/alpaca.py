"""Pretraining a base for English instructions from scratch, without GPT-2's weights.

    python data/train_tokenizer.py --input=YOUR_TEXTS --vocab_size=8192 --output=out/alpaca8k
    python data/prepare.py config/alpaca.py --input=YOUR_TEXTS
    python train.py config/alpaca.py

YOUR_TEXTS are English, the more the better. With a network connection config/alpaca_sft.py can
start from GPT-2's weights instead.
"""

out_dir = "out/alpaca"
dataset = "data/alpaca_texts"
tokenizer = "out/alpaca8k.tiktoken"
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
batch_size = 16
gradient_accumulation_steps = 1
max_iters = 4000
learning_rate = 1e-3
warmup_iters = 100
eval_interval = 200
eval_iters = 25
sample_prompt = "The"
