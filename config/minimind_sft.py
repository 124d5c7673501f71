"""Fine-tuning of config/minimind.py's model, all weights: the second of its four stages.

    python data/prepare_sft.py config/minimind_sft.py --input=YOUR_PAIRS
    python train.py config/minimind_sft.py

For conversations add --format=chat (OpenAI's `messages`) or --format=alpaca to the first command. A
run keeps its prompt format: minimind_lora.py then wants conversations or instructions too, in place
of the bundled pairs, and minimind_dpo.py's first command --format=chat.
"""

out_dir = "out/minimind_sft"
init_from = "out/minimind"  # its shape is inherited
dataset = "data/minimind_sft"
tokenizer = "out/minimind6400.tiktoken"
block_size = 512
epochs = 2
batch_size = 16
gradient_accumulation_steps = 1
learning_rate = 5e-4
warmup_iters = 50
eval_interval = 100
dropout = 0.1
