"""Names that users of nanoGPT type: taken where they mean the same, else answered with ours."""

from pathlib import Path

import pytest

from config import train_config
from config.configurator import configure
from minigpt.common.errors import UserError
from minigpt.tokenizer.tokenizer import load_tokenizer


def resolve(*words):
    return configure(shared="all", argv=list(map(str, words)), quiet=True)


def complaint(*words):
    with pytest.raises(UserError) as caught:
        resolve(*words)
    return str(caught.value)


# nanoGPT's config/train_shakespeare_char.py, in its own words.
SHAKESPEARE = """
out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 200
log_interval = 10
wandb_log = False
always_save_checkpoint = True
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
bias = False
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
decay_lr = True
grad_clip = 1.0
device = 'cpu'
dtype = 'float32'
compile = False
"""


def test_a_recipe_of_nanogpt_is_taken(tmp_path):
    recipe = tmp_path / "theirs.py"
    recipe.write_text(SHAKESPEARE, encoding="utf-8")
    settings = resolve(recipe)
    assert settings.min_lr_ratio == pytest.approx(0.1)
    assert settings.schedule == "cosine" and settings.max_iters == 5000
    assert settings.origin("min_lr_ratio") == f"{recipe}:19"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--min_lr=2e-4", "--learning_rate=1e-3"], "min_lr_ratio", 0.2),
        (["--learning_rate=4e-3", "--min_lr=1e-3"], "min_lr_ratio", 0.25),
        (["--min_lr=0"], "min_lr_ratio", 0.0),
        (["--decay_lr=False"], "schedule", "constant"),
        (["--lr_decay_iters=70", "--max_iters=70"], "max_iters", 70),
        (["--wandb_log=False", "--compile=False"], "compile", False),
        (["--dtype=bfloat16"], "dtype", "bfloat16"),
    ],
)
def test_taken_where_it_means_the_same(words, name, value):
    assert getattr(resolve(*words), name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("--wandb_log=True", "--tensorboard=true"),
        ("--wandb_project=mine", "visualize.py"),
        ("--always_save_checkpoint=False", "best/"),
        ("--eval_only=True", "evaluations-perplexity.py"),
        ("--backend=nccl", "torchrun"),
        ("--lr_decay_iters=7", "max_iters=20000"),
        ("--min_lr=1", "learning_rate=0.001"),
        ("--min_lr=low", "expected float"),
        ("--decay_lr=3", "expected bool"),
        ("--lr_schedule=linear", "did you mean schedule?"),
        ("--EOT_TOKEN=50256", "--tokenizer=gpt2"),
    ],
)
def test_else_one_line_names_ours(word, ours):
    text = complaint(word)
    assert text.count("\n") == 0 and word.partition("=")[0] in text and ours in text


@pytest.mark.parametrize("word", ["--min_lr=1e-4", "--lr_decay_iters=7", "--decay_lr=true"])
def test_a_script_that_does_not_train_says_so(word):
    with pytest.raises(UserError, match="does not read"):
        configure(shared="out_dir", argv=[word], quiet=True)


def test_the_ids_of_special_tokens_are_the_default_tokenizers():
    tokenizer = load_tokenizer(train_config.tokenizer)
    assert (tokenizer.eot, tokenizer.pad) == (train_config.EOT_TOKEN, train_config.PAD_TOKEN)
    assert "EOT_TOKEN" not in resolve().as_dict()


# -- the home folder -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("--out_dir=~/run", "out_dir", "{home}/run"),
        ("--dataset=~", "dataset", "{home}"),
        ("--init_from=hf:~/gpt2", "init_from", "hf:{home}/gpt2"),
        ("--out_dir=a~/b", "out_dir", "a~/b"),
        ("--sample_prompt=~/", "sample_prompt", "~/"),
    ],
)
def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, word, name, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    assert getattr(resolve(word), name) == value.format(home=tmp_path)


def test_a_tilde_in_lists_and_recipes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    class Settings:
        input: str = ""  # files, comma-separated
        runs: list[str] = []  # folders

    recipe = tmp_path / "mine.py"
    recipe.write_text('out_dir = "~/there"\n', encoding="utf-8")
    words = [str(recipe), "--input=~/a.txt,b.txt,~/c", "--runs=~/x,y", "--runs", "~/z"]
    found = configure(Settings, shared="out_dir", argv=words, quiet=True)
    home = str(tmp_path)
    assert found.input == f"{home}/a.txt,b.txt,{home}/c"
    assert found.runs == [f"{home}/x", "y", f"{home}/z"]
    assert Path(found.out_dir) == tmp_path / "there"
