"""Instruction tuning on data in Alpaca's format, as conversations in ChatML.

    python data/prepare_sft.py config/alpaca_sft.py --input=YOUR_INSTRUCTIONS --format=alpaca
    python train.py config/alpaca_sft.py

With --template=alpaca in the first command the turns have Alpaca's preamble and headings instead.

From GPT-2's weights (downloaded once, or in a folder) instead of config/alpaca.py's:

    python data/prepare_sft.py config/alpaca_sft.py --input=YOUR_INSTRUCTIONS --format=alpaca \\
        --tokenizer=hf:gpt2
    python train.py config/alpaca_sft.py --tokenizer=hf:gpt2 --init_from=hf:gpt2 \\
        --learning_rate=1e-4
"""

out_dir = "out/alpaca_sft"
init_from = "out/alpaca"
dataset = "data/alpaca_sft"
tokenizer = "out/alpaca8k.tiktoken"
block_size = 256
layout = "concat"  # whole conversations, isolated; pad and packed are for comparison
optimizer = "adamw"
learning_rate = 3e-4
min_lr_ratio = 0.1
warmup_iters = 100
epochs = 3
batch_size = 16
gradient_accumulation_steps = 1
eval_interval = 100
eval_iters = 25
dropout = 0.1
sample_prompt = "Who are you?"
