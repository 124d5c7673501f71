"""Fine-tuning of config/poems.py's model: poems on demand, minutes on two CPU cores.

    python data/prepare_sft.py config/poems_sft.py --input=data/poems/pairs.jsonl \\
        --val_fraction=0.02
    python train.py config/poems_sft.py
    python tools/evaluations-poems.py --out_dir=out/poems_sft

The pairs are made from the poems themselves (data/prepare_poems.py); rhymes.jsonl asks which
characters rhyme, which line ends alone teach far more slowly. With the --val_fraction of
pretraining the same poems are held out.
"""

out_dir = "out/poems_sft"
init_from = "out/poems"  # its shape and tokenizer are inherited
dataset = "data/poems_sft_blocks"
tokenizer = "out/poems_vocabulary.tiktoken"
block_size = 128
batch_size = 16
gradient_accumulation_steps = 1
max_iters = 1080  # 0.6 of the pairs; about ten minutes on two cores
warmup_iters = 20
learning_rate = 2e-3  # as in pretraining: the answers are poems, too, so there is little to forget
embedding_lr_ratio = 8.0
beta2 = 0.99
muon_momentum = 0.9
eval_interval = 180
eval_iters = 25
sample_prompt = "以“春山”为题写一首五言绝句。"
sample_tokens = 64
