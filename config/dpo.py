"""DPO on preference pairs, after fine-tuning: only what it changes against train_config.py.

python data/prepare_dpo.py --input=preferences.jsonl --dataset=data/processed_dpo
python train.py config/dpo.py
"""

out_dir = "out/dpo"
init_from = "out/sft"  # the run to train, also the reference model
stage = "dpo"
dataset = "data/processed_dpo"
guard_dataset = "data/processed_sft"  # forgetting check: the data of fine-tuning
epochs = 1  # more would overfit to the pairs
batch_size = 16  # pairs: 32 blocks
gradient_accumulation_steps = 1
optimizer = "adamw"  # few small steps; Muon's updates have the same size in all directions
learning_rate = 2e-5  # less than a tenth of fine-tuning's, to keep the language intact
warmup_iters = 20
weight_decay = 0.0
eval_interval = 50
dropout = 0.0  # dropout would make the model differ from the reference at random
