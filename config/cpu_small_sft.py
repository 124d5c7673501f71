"""Fine-tuning of config/cpu_small.py's model on question–answer pairs.

python data/prepare_sft.py config/cpu_small_sft.py --input=YOUR_PAIRS
python train.py config/cpu_small_sft.py
"""

out_dir = "out/cpu_small_sft"
init_from = "out/cpu_small"
dataset = "data/cpu_small_sft"
block_size = 256
epochs = 4
batch_size = 8
gradient_accumulation_steps = 1
learning_rate = 5e-4
warmup_iters = 20
eval_interval = 50
eval_iters = 25
dropout = 0.1
