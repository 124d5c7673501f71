"""Fine-tuning on question–answer pairs: only what it changes against train_config.py.

python data/prepare_sft.py --input=sft/sft_saves.jsonl --dataset=data/processed_sft
python train.py config/train_config_sft.py
"""

out_dir = "out/sft"
init_from = "out/pretrain"  # its shape and tokenizer are inherited
dataset = "data/processed_sft"
epochs = 4  # three to five: more overfits
batch_size = 32
gradient_accumulation_steps = 1  # pairs are short: a step of 16,384 tokens has hundreds of them
learning_rate = 3e-4  # a third of pretraining's, to keep what the model knows
warmup_iters = 50
eval_interval = 100
dropout = 0.1  # there are few pairs, seen several times
