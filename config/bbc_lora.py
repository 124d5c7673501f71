"""A news classifier with LoRA: frozen weights, trained adapters. It changes config/bbc_sft.py.

python train.py config/bbc_sft.py config/bbc_lora.py
python tools/evaluations-classification.py config/bbc_lora.py --input=data/bbc/test.jsonl
"""

out_dir = "out/bbc_lora"
lora_rank = 16
lora_alpha = 32.0
learning_rate = 4e-3
