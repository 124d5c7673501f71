"""Pretraining a modern 26M model with its own vocabulary, about as small as a chat model can be.

    python data/train_tokenizer.py --input=YOUR_TEXTS,YOUR_PAIRS --vocab_size=6400 \\
        --output=out/minimind6400
    python data/prepare.py config/minimind.py --input=YOUR_TEXTS
    python train.py config/minimind.py

Grouped-query attention, RoPE, SwiGLU, RMSNorm. With a vocabulary of 6,400 the embedding is an
eighth of the weights. Then config/minimind_sft.py, minimind_lora.py and minimind_dpo.py.
"""

out_dir = "out/minimind"
dataset = "data/minimind"
tokenizer = "out/minimind6400.tiktoken"
block_size = 512
n_layer = 8
n_head = 8
n_kv_head = 2  # four query heads share keys and values: a quarter of the KV cache
n_embd = 512
position = "rope"
norm = "rmsnorm"
mlp = "swiglu"
qk_norm = True
tie_embeddings = True  # 25.8M weights, 3.3M of them in the embedding
batch_size = 32
gradient_accumulation_steps = 2  # 32,768 tokens per step
learning_rate = 1.5e-3
schedule = "cosine"
warmup_iters = 200
epochs = 1  # for 100 million tokens or more; 4 to 10 for a few million
