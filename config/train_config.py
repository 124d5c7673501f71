"""Every setting of a run: its default and its meaning.

    python train.py config/train_config.py          # the default: a modern 124M shape, Chinese text
    python train.py config/cpu_small.py --seed=7    # a recipe, and one more change
    python train.py --help                          # this list

A recipe is a file like this one that assigns only what it changes. Later recipes and --key=value
win. Importing this module gives the defaults, never a run's values: scripts get those from
config/configurator.py.
"""

from typing import Literal

# -- the run -------------------------------------------------------------------------------------
out_dir: str = "out/pretrain"  # the run's folder: checkpoint, best/, log.jsonl, samples.txt
init_from: str = "scratch"  # "scratch"; "resume": continue the run in out_dir; the folder of a
#                             run: fine-tune it (its weights, shape and tokenizer, a new optimizer);
#                             hf:FOLDER or hf:NAME: a Hugging Face model (GPT-2, Llama, Mistral,
#                             Qwen2, Qwen3)
overwrite: bool = False  # true: delete the run that is in out_dir
seed: int = 1337  # of initial weights, data order and dropout

# -- data ----------------------------------------------------------------------------------------
dataset: str = "data/processed"  # the folder that data/prepare.py wrote
tokenizer: str = "zh"  # "zh", "gpt2", a file from data/train_tokenizer.py, or hf:FOLDER or hf:NAME,
#                             the vocabulary of a Hugging Face model
block_size: int = 512  # tokens per block: the context length
layout: Literal["pad", "split", "concat", "packed"] = "concat"  # how texts fill blocks; pad:
#                             one text per block, truncated; split: a text over several blocks;
#                             concat: several texts per block, isolated; packed: one stream of
#                             tokens, cut every block_size
isolate: bool = True  # concat: attention and positions are limited to each text (segment); false:
#                             tokens also attend to the other texts in the block
val_dataset: str | None = None  # another dataset whose val split is evaluated (same tokenizer and
#                             block_size, any layout); none: that of `dataset`
shuffle: bool = True  # blocks in random order (better); false: in the order of the file. The older
#                             name if_trav means the opposite: if_trav=true is shuffle=false

# -- the model -----------------------------------------------------------------------------------
n_layer: int = 12  # transformer blocks
n_head: int = 12  # attention heads
n_kv_head: int | None = None  # key and value heads (grouped-query attention); none: n_head
n_embd: int = 768  # width of the model: embeddings and residual stream
head_dim: int | None = None  # width of a head; none: n_embd / n_head
n_hidden: int | None = None  # width inside the MLP; none: 4 n_embd for gelu, 8/3 of it for swiglu
position: Literal["rope", "learned"] = "rope"  # rotary embeddings, or GPT-2's learned ones
norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"  # normalization before attention and MLP
mlp: Literal["swiglu", "gelu"] = "swiglu"  # about the same number of parameters at default widths
qk_norm: bool = True  # RMSNorm of queries and keys in each head: stable at higher learning rates
bias: bool = False  # biases in linear layers and LayerNorm, as in GPT-2
tie_embeddings: bool = True  # the token embedding is also the output layer
rope_theta: float = 10000.0  # base of the rotary frequencies; good for contexts of a few thousand
norm_eps: float = 1e-6  # added to the variance in RMSNorm and LayerNorm
dropout: float = 0.0  # 0 for pretraining; 0.1 can help on a small fine-tuning set

# -- optimisation --------------------------------------------------------------------------------
batch_size: int = 32  # blocks per forward pass and process
gradient_accumulation_steps: int = 4  # forward passes per step: 32 * 4 * 512 = 65,536 tokens
max_iters: int = 20_000  # steps: 20,000 * 65,536 = 1.3 billion tokens, about four epochs of a
#                             cleaned Chinese Wikipedia dump of 1.2 GB
epochs: float | None = None  # passes over the dataset; if set, it replaces max_iters
max_minutes: float | None = None  # end the run after so many minutes, evaluations and samples
#                             included; the learning-rate schedule then follows steps or minutes,
#                             whichever is further
budget_minutes: float | None = None  # choose the model's shape, the batch, the rates and the length
#                             for so many minutes on this machine and for this dataset, by a short
#                             timing; the choice is printed as a recipe; flags overrule it
optimizer: Literal["muon", "adamw"] = "muon"  # muon: hidden matrices by Muon, the rest by AdamW
learning_rate: float = 1e-3  # peak; Muon's updates are scaled to AdamW's size, so both use this
embedding_lr_ratio: float = 1.0  # learning rate of embeddings, relative to learning_rate
min_lr_ratio: float = 0.1  # final learning rate, relative to the peak
schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"  # of the learning rate after
#                             the warmup; wsd: stable, then decay
warmup_iters: int = 200  # steps of linear warmup; at most a tenth of the run
decay_fraction: float = 0.3  # wsd: fraction of the run in which the learning rate decays
weight_decay: float = 0.1  # of matrices; norms and biases are not decayed
beta1: float = 0.9  # AdamW
beta2: float = 0.95  # AdamW
muon_momentum: float = 0.95  # Muon
grad_clip: float = 1.0  # maximum gradient norm; 0: no clipping
freeze_layers: int = 0  # freeze the first n transformer blocks
freeze_embeddings: bool = False  # freeze token and position embeddings
lora_rank: int = 0  # LoRA: train adapters of this rank on the frozen weights of init_from (8 to 64;
#                             blocks frozen by freeze_layers get none); 0: train all weights
lora_alpha: float = 16.0  # the low-rank update is scaled by lora_alpha / lora_rank
lora_dropout: float = 0.0  # dropout on the adapters' input; slow on a CPU
lora_targets: list[str] = ["all"]  # matrices with adapters: q, k, v, o (attention), gate, up, down
#                             (mlp; gate only in swiglu), or the groups attention, mlp, all

# -- preferences, rewards, a teacher ---------------------------------------------------------------
stage: Literal["lm", "dpo", "grpo", "distill"] = "lm"  # lm: next-token prediction; dpo: preference
#                             pairs (data/prepare_dpo.py, config/dpo.py), batch_size counts pairs;
#                             grpo: answers that a reward judges (data/prepare_prompts.py,
#                             config/sums_grpo.py), batch_size counts prompts; distill: the next
#                             token, and the probabilities of a teacher. With dpo and grpo init_from
#                             is also the reference model
dpo_beta: float = 0.1  # strength of the KL constraint to the reference model
reward: str = ""  # grpo: what is rewarded: exact, number, rouge, pattern, length, repetition,
#                             judge, or a weighted sum such as exact+0.5*length; FILE.py: your own
#                             function reward(prompt, answer, record), which is run
grpo_group: int = 8  # answers to each prompt; they are compared with one another
grpo_tokens: int = 64  # longest answer
grpo_steps: int = 1  # steps that learn from the same answers; more save generation
grpo_clip: float = 0.2  # a token whose probability fell by this share is not pushed down further
grpo_clip_high: float = 0.28  # the same upwards; higher, so that rare tokens can become likely
grpo_beta: float = 0.0  # strength of the KL constraint to the reference model; 0: none
grpo_by_length: bool = False  # true: the mean over an answer's tokens, as the first GRPO: favours
#                             long wrong answers
grpo_by_std: bool = False  # true: divide by the standard deviation of a prompt's rewards, as the
#                             first GRPO: favours prompts that are almost always right or wrong
judge_url: str = ""  # of the server that --reward=judge asks, such as http://localhost:1234/v1
judge_model: str = ""  # the model there; "": the first that it lists
judge_key_env: str = ""  # the environment variable with its key
teacher: str | None = None  # distill: the folder of a run with the same tokenizer
distill_text: float = 0.5  # distill: weight of the text's own next token; the rest is the KL
#                             divergence from the teacher's probabilities
guard_dataset: str | None = None  # the forgetting check: each evaluation also measures the
#                             perplexity on the val split of this dataset, e.g. that of fine-tuning
max_forgetting: float | None = 1.2  # stop if that perplexity exceeds its initial value by this
#                             factor; none: only measure

# -- evaluation ----------------------------------------------------------------------------------
eval_interval: int = 250  # steps between evaluations; each also saves the checkpoint
save_minutes: float | None = 15.0  # also save after so many minutes without an evaluation; none:
#                             only at evaluations
eval_iters: int = 50  # batches per evaluation, always the same ones
patience: int = 0  # early stopping: evaluations without a better val loss; 0: off
sample_prompt: str = "中国的"  # prompt of the text sample at each evaluation; "": no sample
sample_tokens: int = 64  # length of that sample
log_interval: int = 10  # steps between progress lines

# -- the machine ---------------------------------------------------------------------------------
device: str = "auto"  # auto: cuda, then mps, then cpu; or a name such as "cuda:1"
dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"  # auto: bfloat16
#       on GPUs that have it, float16 (with a loss scaler) on older ones, on a Mac's GPU the fastest
#       that gives float32's loss, float32 elsewhere; int8, int4 (4 bits, by C++ kernels): for
#       generation on a CPU, not for training; where they are slower float32 is used
parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes (torchrun): ddp: each has the whole
#       model; fsdp: each has its part of weights, gradients and optimizer state, for a model that
#       does not fit; it communicates more
compile: bool = False  # torch.compile: takes minutes to start, pays off on a GPU
activation_checkpointing: bool = False  # store the input of each block, and compute the rest again
#       in the backward pass: a fraction of the memory, a third more time; tools/plan.py says when
deterministic: bool = False  # CUDA: slower kernels with bit-identical results
tensorboard: bool = False  # also write TensorBoard events to out_dir

# -- generation, not train.py --------------------------------------------------------------------
kernels: Literal["auto", "true", "false", "fbgemm", "int_mm"] = "auto"  # the products on a CPU:
#       auto: the fastest; true: by C++ kernels, built once (needs g++, ninja); false: by PyTorch;
#       fbgemm, int_mm: int8 by this part of PyTorch

# The ids of the default tokenizer's special tokens, for scripts of your own. Not settings: another
# tokenizer has others (gpt2: 50256 and 50257), and a run's own are in its folder.
EOT_TOKEN = 8187  # ends a text
PAD_TOKEN = 8188  # fills the rest of a block
