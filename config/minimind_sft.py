"""Fine-tuning of config/minimind.py's model, all weights: the second of its four stages.

    python data/prepare_sft.py config/minimind_sft.py --input=YOUR_PAIRS
    python train.py config/minimind_sft.py

Conversations and instructions are recognized and make a run that reads ChatML. A run keeps its
template: give --template=chat to the first commands of minimind_lora.py and minimind_dpo.py then.
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
