"""The classic recipe for a laptop CPU. It changes config/cpu_small.py on top of config/classic.py.

    python data/prepare.py config/classic.py config/cpu_small.py config/classic_small.py \
        --input=YOUR_TEXTS
    python train.py config/classic.py config/cpu_small.py config/classic_small.py
"""

out_dir = "out/classic_small"
dataset = "data/classic_small"
learning_rate = 1e-3  # classic.py's is for 124M parameters, cpu_small.py's for Muon
embedding_lr_ratio = 1.0
beta2 = 0.95
warmup_iters = 100
