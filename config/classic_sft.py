"""Fine-tuning of the first wiki MiniGPT: question ## answer EOT, one pair per block.

python data/prepare_sft.py config/classic_sft.py --input=sft/sft_saves.jsonl
python train.py config/classic_sft.py
"""

out_dir = "out/classic_sft"
init_from = "out/classic"
dataset = "data/classic_sft"
tokenizer = "gpt2"
layout = "pad"
block_size = 512
optimizer = "adamw"
learning_rate = 6e-5
warmup_iters = 200
epochs = 4
batch_size = 12
gradient_accumulation_steps = 1
