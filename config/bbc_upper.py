"""A classifier of news of which only the upper half learns. It changes config/bbc_sft.py.

python train.py config/bbc_sft.py config/bbc_upper.py
python tools/evaluations-classification.py config/bbc_upper.py --input=data/bbc/test.jsonl
"""

out_dir = "out/bbc_upper"
freeze_layers = 2  # of 4: what the lower ones and the embeddings learned from text stays
freeze_embeddings = True
epochs = 2  # fewer weights move, and they learn more slowly
