"""A news classifier: all weights of config/bbc.py's base are trained to answer with the class.

    python data/prepare_sft.py config/bbc_sft.py --input=data/bbc/pairs.jsonl
    python train.py config/bbc_sft.py
    python tools/evaluations-classification.py config/bbc_sft.py --input=data/bbc/test.jsonl

Only the label and its EOT are targets. config/bbc_upper.py after this one trains only the upper
half of the model, config/bbc_lora.py adapters.
"""

out_dir = "out/bbc_sft"
init_from = "out/bbc"  # its shape and tokenizer are inherited
dataset = "data/bbc_pairs"
tokenizer = "out/bbc4k.tiktoken"
block_size = 256
epochs = 1  # of 1,024 questions, one per block
batch_size = 8
gradient_accumulation_steps = 1
learning_rate = 2e-3
warmup_iters = 20
eval_interval = 64  # twice per epoch
eval_iters = 16
dropout = 0.1
sample_tokens = 6
