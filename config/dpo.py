"""DPO on preference pairs, after fine-tuning: only what it changes against train_config.py.

python data/prepare_dpo.py --input=preferences.jsonl --dataset=data/processed_dpo
python train.py config/dpo.py
"""

out_dir = "out/dpo"
init_from = "out/sft"  # the run that is to prefer better answers, and the reference it is held to
stage = "dpo"
dataset = "data/processed_dpo"
dpo_guard_dataset = "data/processed_sft"  # it must not forget what it was fine-tuned on
epochs = 1  # more make it sure of the pairs that it saw
batch_size = 16  # pairs: 32 blocks
gradient_accumulation_steps = 1
optimizer = "adamw"  # a few small steps from where it is; Muon moves every direction alike
learning_rate = 2e-5  # less than a tenth of fine-tuning's: the language is to stay as it is
warmup_iters = 20
weight_decay = 0.0
eval_interval = 50
dropout = 0.0  # with dropout the model would differ from the reference by chance
