"""A news classifier from scratch: the base, pretrained only on the training part.

    python data/prepare_classes.py --input=bbc_news.csv --output=data/bbc
    python data/train_tokenizer.py --input=data/bbc/train.jsonl --vocab_size=4096 --output=out/bbc4k
    python data/prepare.py config/bbc.py --input=data/bbc/train.jsonl
    python train.py config/bbc.py

The articles are English, in five classes (business, entertainment, politics, sport, tech). 1,150 of
them are for training: 0.6 million tokens. Then config/bbc_sft.py fine-tunes it on the classes.
"""

out_dir = "out/bbc"
dataset = "data/bbc_texts"
tokenizer = "out/bbc4k.tiktoken"
block_size = 256
n_layer = 4
n_head = 4
n_embd = 128  # 1.4 million weights: topics depend on words more than on their order
batch_size = 8
gradient_accumulation_steps = 1
max_iters = 500  # 500 * 8 * 256 = 1 million tokens, almost two epochs
warmup_iters = 40
learning_rate = 4e-3
eval_interval = 250
eval_iters = 16
sample_prompt = "the"
sample_tokens = 24
