"""Fine-tuning on the bundled pairs until the model has memorised them: quickstart.py.

    python data/prepare_sft.py config/quickstart_sft.py --input=sft/sft_saves.jsonl
    python train.py config/quickstart_sft.py

Twelve passes are more than a model of your own wants (config/cpu_small_sft.py): here they show that
fine-tuning works at all, and what memorising does to questions not seen before.
"""

out_dir = "out/quickstart_sft"
init_from = "out/quickstart"  # its shape and tokenizer are inherited
dataset = "data/processed_quickstart_sft"
block_size = 128
epochs = 12
max_minutes = 2.5  # a slow machine stops here, and the schedule ends, too
batch_size = 8
gradient_accumulation_steps = 1
learning_rate = 2e-3  # as in pretraining: this model has little to forget
warmup_iters = 20
eval_interval = 100
eval_iters = 10
sample_tokens = 48
