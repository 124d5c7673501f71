"""Tang poems: a small model that does something well after ten minutes on two CPU cores.

    git clone --depth=1 https://github.com/chinese-poetry/chinese-poetry
    python data/prepare_poems.py --input="chinese-poetry/全唐诗/poet.tang.*.json" --simplify=true
    python data/train_tokenizer.py --input=data/poems/poems.jsonl,data/poems/pairs.jsonl \\
        --vocab_size=6144 --characters=true --output=out/poems_vocabulary
    python data/prepare.py config/poems.py --input=data/poems/poems.jsonl --val_fraction=0.02
    python train.py config/poems.py

A token is a character, so a line of five is always five tokens: the form is easy to see.
"""

out_dir = "out/poems"
dataset = "data/poems_blocks"
tokenizer = "out/poems_vocabulary.tiktoken"
block_size = 128  # a poem is 65 tokens on average: two in a block
n_layer = 4
n_head = 4
n_embd = 256
batch_size = 16
gradient_accumulation_steps = 1  # 2,048 tokens per step
max_iters = 540  # a third of the 50,000 poems; about five minutes on two cores with AVX-512
warmup_iters = 20
learning_rate = 2e-3  # this and the three below: as in config/cpu_small.py
embedding_lr_ratio = 8.0
beta2 = 0.99
muon_momentum = 0.9
eval_interval = 90
eval_iters = 25
sample_prompt = "春风"
sample_tokens = 64
