"""Fine-tuning of config/cpu_small.py's model on question–answer pairs.

python data/prepare_sft.py config/cpu_small_sft.py --input=YOUR_PAIRS
python train.py config/cpu_small_sft.py
"""

out_dir = "out/cpu_small_sft"
init_from = "out/cpu_small"
dataset = "data/cpu_small_sft"
block_size = 256
epochs = 6  # so many readings at these small steps teach a pair: bench/short_sets.py
batch_size = 2  # 512 tokens: few pairs make few steps, and steps are what teaches
gradient_accumulation_steps = 1
learning_rate = 1e-3  # half of pretraining's
warmup_iters = 20
eval_interval = 200
eval_iters = 25
