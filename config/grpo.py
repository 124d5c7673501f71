"""Learn from a reward, after fine-tuning: only what it changes against train_config.py.

python data/prepare_prompts.py --input=YOUR_PAIRS --dataset=data/processed_prompts
python train.py config/grpo.py
python train.py config/grpo.py --reward=my_reward.py
"""

out_dir = "out/grpo"
init_from = "out/sft"  # the run to train, also the reference model
stage = "grpo"
reward = "rouge"  # how near an answer is to the reference
dataset = "data/processed_prompts"
guard_dataset = "data/processed_sft"  # forgetting check: the data of fine-tuning
grpo_group = 8
grpo_tokens = 128
batch_size = 8  # prompts: 64 answers
gradient_accumulation_steps = 4
max_iters = 200
optimizer = "adamw"  # few small steps, as in DPO
learning_rate = 1e-5
warmup_iters = 10
weight_decay = 0.0
eval_interval = 20
eval_iters = 8
