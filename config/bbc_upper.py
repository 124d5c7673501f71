"""A news classifier that trains only the upper half. It changes config/bbc_sft.py.

python train.py config/bbc_sft.py config/bbc_upper.py
python tools/evaluations-classification.py config/bbc_upper.py --input=data/bbc/test.jsonl
"""

out_dir = "out/bbc_upper"
freeze_layers = 2  # of 4: the lower ones and the embeddings keep what they learned from text
freeze_embeddings = True
epochs = 2  # fewer trained weights learn more slowly
