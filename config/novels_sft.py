"""Fine-tuning of config/novels.py's model on questions about the novels.

    python data/prepare_sft.py config/novels_sft.py --input=sft/novels_pairs.jsonl
    python train.py config/novels_sft.py

The bundled 273 pairs teach only the form of an answer and their own facts. A larger model writes
more of them, topic by topic:

    python sft/sft_generate.py --input=sft/topics.jsonl --prompt=topic --rounds=50 \\
        --question_max=40 --output=sft/more_pairs.jsonl \\
        --exclude=sft/novels_pairs.jsonl
"""

out_dir = "out/novels_sft"
init_from = "out/novels"  # its shape and tokenizer are inherited
dataset = "data/novels_sft"
block_size = 256
epochs = 6
batch_size = 4
gradient_accumulation_steps = 1
learning_rate = 5e-4
warmup_iters = 20
eval_interval = 25
eval_iters = 25
dropout = 0.1
