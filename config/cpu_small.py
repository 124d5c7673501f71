"""A model for a laptop CPU: 4 layers of width 256, blocks of 256 tokens, minutes instead of days.

    python data/prepare.py config/cpu_small.py --input=YOUR_TEXTS
    python train.py config/cpu_small.py --max_minutes=20

Learning rates, warmup and betas are the best of the default recipe at this size;
config/classic_small.py has those of the classic recipe.
"""

out_dir = "out/cpu_small"
dataset = "data/cpu_small"
block_size = 256
n_layer = 4
n_head = 4
n_embd = 256
batch_size = 8
gradient_accumulation_steps = 1  # 2,048 tokens per step: many small steps are best for a short run
max_iters = 5000  # about an hour on two cores
warmup_iters = 20
learning_rate = 2e-3  # small models can take more than the default
embedding_lr_ratio = 8.0  # a short run learns mostly in its embeddings: bench/LOG.md
beta2 = 0.99  # the embedding of a rare token gets few gradients to estimate their size
muon_momentum = 0.9
eval_interval = 200
eval_iters = 25
