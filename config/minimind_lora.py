"""A special domain for config/minimind_sft.py's model with LoRA: frozen weights, trained adapters.

    python data/prepare_sft.py config/minimind_lora.py --input=sft/novels_pairs.jsonl
    python train.py config/minimind_lora.py

The bundled pairs about three novels are an example of a domain. The adapters of one base are 2 MB
each; a run of them names its base and is used like any other.
"""

out_dir = "out/minimind_lora"
init_from = "out/minimind_sft"
dataset = "data/minimind_lora"
tokenizer = "out/minimind6400.tiktoken"
block_size = 512
lora_rank = 8
lora_alpha = 16.0
epochs = 10  # there are few pairs
batch_size = 2
gradient_accumulation_steps = 1
learning_rate = 1e-3
warmup_iters = 10
eval_interval = 20
