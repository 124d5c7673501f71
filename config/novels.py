"""Three novels, or any few long books: pretraining on a few megabytes of text.

    python data/prepare.py config/novels.py --input=YOUR_NOVELS
    python train.py config/novels.py

Plain .txt files, one per book; 三国演义, 红楼梦 and 西游记 are 2.1 million characters together. The
model sees them several times, so it is of medium size. Blocks of 128 to 512 tokens give similar
results; fine-tuning (config/novels_sft.py) must use the same.
"""

out_dir = "out/novels"
dataset = "data/novels"
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
batch_size = 16
gradient_accumulation_steps = 1  # 4,096 tokens per step
max_iters = 4000  # about ten epochs of the three novels
learning_rate = 1e-3  # 3e-4 and 1e-4 learn much less in the same steps
min_lr_ratio = 0.1
warmup_iters = 100
eval_interval = 100  # often, to see where the val loss begins to rise
eval_iters = 25
dropout = 0.1
sample_prompt = "话说"
