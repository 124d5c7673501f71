"""DPO of config/minimind_sft.py's model: the last of its four stages.

    python data/prepare_dpo.py config/minimind_dpo.py --from_qa=YOUR_PAIRS \\
        --input=out/preferences.jsonl
    python train.py config/minimind_dpo.py

--from_qa makes preference pairs from question–answer pairs: right answers against corrupted ones.
Votes from the arena are better: leave --from_qa out and give them as --input.
"""

out_dir = "out/minimind_dpo"
init_from = "out/minimind_sft"  # also the reference
stage = "dpo"
dataset = "data/minimind_dpo"
guard_dataset = "data/minimind_sft"  # forgetting check: stop if its fine-tuned answers get worse
tokenizer = "out/minimind6400.tiktoken"
block_size = 512
dpo_beta = 0.1
epochs = 1
batch_size = 8  # pairs
gradient_accumulation_steps = 1
optimizer = "adamw"
learning_rate = 2e-5
weight_decay = 0.0
warmup_iters = 20
eval_interval = 50
