"""Every knob that shapes a run, its default, and its reason.

    python train.py config/train_config.py          # the default: a modern 124M shape, Chinese text
    python train.py config/cpu_small.py --seed=7    # a recipe, and one more change
    python train.py --help                          # this list

A recipe is a file like this one that assigns only what it changes; later recipes and --key=value
win. Importing this module gives the defaults, never a run's values: scripts ask
config/configurator.py for those.
"""

from typing import Literal

# -- the run -------------------------------------------------------------------------------------
out_dir: str = "out/pretrain"  # the run's folder: checkpoint, best/, log.jsonl, samples.txt
init_from: str = "scratch"  # "scratch", "resume" (go on in out_dir), or the folder of a run to
#                             start from: its weights, shape and tokenizer, with a fresh optimizer;
#                             or hf:FOLDER or hf:NAME, a Hugging Face model (GPT-2 or Qwen3)
overwrite: bool = False  # true: throw away the run that out_dir already holds
seed: int = 1337  # of weights, data order and dropout

# -- data ----------------------------------------------------------------------------------------
dataset: str = "data/processed"  # the block files that data/prepare.py wrote
tokenizer: str = "zh"  # "zh", "gpt2", a file of data/train_tokenizer.py, or hf:FOLDER or hf:NAME,
#                             the vocabulary of a Hugging Face model
block_size: int = 512  # tokens in a block: the longest context the model ever sees
layout: Literal["pad", "split", "concat", "packed"] = "concat"  # how texts fill blocks: one a
#                             block and cut (pad), over several blocks (split), several in one block
#                             kept apart (concat), or one stream cut anywhere (packed)
isolate: bool = True  # concat: attention and positions are kept inside each piece; false: training
#                             reads a row as one piece, as concatenation is done elsewhere
val_dataset: str | None = None  # another folder whose val blocks judge the run (same tokenizer and
#                             block_size, any layout); none: dataset's
shuffle: bool = True  # blocks in random order (better); false: in the order of the file. The older
#                             name if_trav means the opposite: if_trav=true is shuffle=false

# -- the model -----------------------------------------------------------------------------------
n_layer: int = 12  # transformer blocks
n_head: int = 12  # attention heads
n_kv_head: int | None = None  # heads of keys and values (grouped-query attention); none: n_head
n_embd: int = 768  # width of the residual stream
head_dim: int | None = None  # width of a head; none: n_embd / n_head
n_hidden: int | None = None  # width inside the MLP; none: 4 n_embd for gelu, 8/3 of it for swiglu
position: Literal["rope", "learned"] = "rope"  # rotary positions, or GPT-2's table
norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"  # before each part
mlp: Literal["swiglu", "gelu"] = "swiglu"  # the same number of weights at the default widths
qk_norm: bool = True  # normalise queries and keys a head: steadier at high learning rates
bias: bool = False  # biases in linear layers and LayerNorm, as GPT-2 has them
tie_embeddings: bool = True  # one matrix reads tokens in and writes logits out
rope_theta: float = 10000.0  # base of the rotary frequencies; enough for blocks of a few thousand
norm_eps: float = 1e-6  # added to the variance
dropout: float = 0.0  # for pretraining 0; small fine-tuning sets may want 0.1

# -- optimisation --------------------------------------------------------------------------------
batch_size: int = 32  # blocks in one forward pass of one process
gradient_accumulation_steps: int = 4  # forward passes a step: 32 * 4 * 512 = 65,536 tokens
max_iters: int = 20_000  # steps: 20,000 * 65,536 = 1.3 billion tokens, some four passes over a
#                             cleaned Chinese Wikipedia dump of 1.2 GB
epochs: float | None = None  # passes over the blocks; where given, it replaces max_iters
max_minutes: float | None = None  # stop after so much training time; the schedule then follows
#                             whichever of steps and minutes is further along
optimizer: Literal["muon", "adamw"] = "muon"  # muon: hidden matrices by Muon, the rest by AdamW
learning_rate: float = 1e-3  # peak; Muon's steps are scaled to AdamW's size, so one value serves
embedding_lr_ratio: float = 1.0  # embeddings learn at learning_rate times this
min_lr_ratio: float = 0.1  # the last learning rate as a share of the peak
schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # wsd: warmup, stable, then decay
warmup_iters: int = 200  # steps of linear warmup
decay_fraction: float = 0.3  # wsd: the last share of the run, over which the rate falls
weight_decay: float = 0.1  # of matrices; vectors are never decayed
beta1: float = 0.9  # AdamW
beta2: float = 0.95  # AdamW
muon_momentum: float = 0.95  # Muon
grad_clip: float = 1.0  # largest norm of the gradient; 0: no clipping
freeze_layers: int = 0  # the lower n transformer blocks stay as they are
freeze_embeddings: bool = False  # token and position embeddings stay as they are
lora_rank: int = 0  # train adapters of this rank beside the frozen weights of init_from (LoRA: 8 to
#                             64; the blocks below freeze_layers have none); 0: train the weights
lora_alpha: float = 16.0  # adapters count lora_alpha / lora_rank times
lora_dropout: float = 0.0  # on the adapters' input; on a CPU it costs the speed that LoRA brings
lora_targets: list[str] = ["all"]  # matrices that have adapters: q, k, v, o (attention), gate, up,
#                             down (mlp; gate in swiglu alone), or the groups attention, mlp, all

# -- preferences ---------------------------------------------------------------------------------
stage: Literal["lm", "dpo"] = "lm"  # lm: learn to predict the next token; dpo: learn from pairs of
#                             answers which is better (data/prepare_dpo.py, config/dpo.py);
#                             batch_size then counts pairs, and init_from is also the reference
dpo_beta: float = 0.1  # how strongly the model is held to the reference; small: it may go further
dpo_guard_dataset: str | None = None  # ordinary blocks, such as those of fine-tuning, over whose
#                             val split each evaluation measures how much the model has forgotten
dpo_max_forgetting: float | None = 1.2  # stop where that perplexity is so many times what it was
#                             at the start; none: only measure

# -- evaluation ----------------------------------------------------------------------------------
eval_interval: int = 250  # steps between evaluations; each also saves the checkpoint
eval_iters: int = 50  # batches of the validation set, always the same ones
patience: int = 0  # stop after so many evaluations without a better val loss; 0: never
sample_prompt: str = "中国的"  # what a text sample at each evaluation begins with; "": no sample
sample_tokens: int = 64  # how long that sample is
log_interval: int = 10  # steps between progress lines

# -- the machine ---------------------------------------------------------------------------------
device: str = "auto"  # auto: cuda, then mps, then cpu; or a name such as "cuda:1"
dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # auto: bfloat16 on GPUs
#       that have it, float16 (with a loss scaler) on older ones, float32 elsewhere; int8: to write
#       texts on a CPU (not to train): faster with AVX-512 VNNI, slower with AVX2 alone
compile: bool = False  # torch.compile: worth its minutes of warm-up on a GPU
deterministic: bool = False  # CUDA: slower kernels that give the same bits every time
tensorboard: bool = False  # also write TensorBoard events into out_dir
