"""Hugging Face's models as ours: the logits of transformers, from folders as it writes them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_huggingface import make, save
from tiny_run import run_here

from minigpt.common.errors import UserError
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference.engine import Engine, Request
from minigpt.interop.hf_import import from_hf, load, to_hf
from minigpt.models import checkpoint

SIZES = dict(vocab_size=470, n_positions=40, n_layer=2, n_head=4, n_embd=32)


def gpt2(**more):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**{**SIZES, **more}))


ROPE_SIZES = dict(vocab_size=470, hidden_size=32, num_hidden_layers=2, intermediate_size=56)
ROPE_SIZES |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=40)
THETA = {"rope_theta": 500.0}


def rope_model(family, scaling=None, **more):
    """A model of a family with rotary positions; scaling: a dict with rope_type."""
    import transformers

    rope = THETA | (scaling or {"rope_type": "default"})
    config = getattr(transformers, f"{family}Config")
    facts = {**ROPE_SIZES, "rope_parameters": rope, **more}
    return getattr(transformers, f"{family}ForCausalLM")(config(**facts))


def qwen3(**more):
    return rope_model("Qwen3", **{"head_dim": 12, **more})  # 12 is not 32 / 4


def randomized(reference):
    """In eval mode with every tensor at random, norms and biases too."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return reference.eval()


MODELS = {
    "gpt2": gpt2,
    "gpt2 untied, wide": lambda: gpt2(tie_word_embeddings=False, n_inner=72),
    "qwen3": lambda: qwen3(tie_word_embeddings=True),
    "qwen3 untied": lambda: qwen3(tie_word_embeddings=False, rms_norm_eps=1e-5),
    "qwen3, biases": lambda: qwen3(attention_bias=True),
    "llama": lambda: rope_model("Llama", num_key_value_heads=4, rms_norm_eps=1e-5),
    "llama tied, grouped": lambda: rope_model("Llama", tie_word_embeddings=True),
    "llama, biases": lambda: rope_model("Llama", head_dim=12, attention_bias=True, mlp_bias=True),
    "llama, mlp_bias": lambda: rope_model("Llama", mlp_bias=True),
    "llama3": lambda: rope_model("Llama", LLAMA3),
    "llama, linear": lambda: rope_model("Llama", {"rope_type": "linear", "factor": 2.5}),
    "llama, yarn": lambda: rope_model("Llama", YARN | {"attention_factor": 0.8}, head_dim=16),
    "mistral": lambda: rope_model("Mistral", sliding_window=None, head_dim=12),
    "qwen2": lambda: rope_model("Qwen2", tie_word_embeddings=True),
    "qwen2, yarn": lambda: rope_model("Qwen2", YARN, tie_word_embeddings=False),
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}
YARN |= {"beta_fast": 8.0}


@pytest.fixture(scope="module", params=MODELS)
def theirs(request):
    return randomized(MODELS[request.param]())


def logits(model, x):
    with torch.no_grad():
        return model.logits(model(x)) if hasattr(model, "blocks") else model(x).logits


KNOWN = 421  # ids of `vocabulary`; our special ids follow them
TOKENS = torch.randint(KNOWN, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vocabulary():
    return make(added=["<|endoftext|>"])


@pytest.fixture(scope="module")
def source(theirs, vocabulary, tmp_path_factory):
    """The folder of the model and its vocabulary, as transformers writes it."""
    folder = tmp_path_factory.mktemp("source")
    theirs.save_pretrained(folder)
    save(folder, vocabulary)
    return folder


@pytest.fixture
def folder(source, tmp_path):
    return shutil.copytree(source, tmp_path / "source")  # for a test to change


def test_the_logits_of_transformers(theirs, source):
    parent = load(f"hf:{source}")
    ours = parent.model
    found, expected = logits(ours, TOKENS), logits(theirs, TOKENS)
    assert expected.std() > 0.1  # not all alike
    torch.testing.assert_close(found[..., :KNOWN], expected[..., :KNOWN], atol=1e-4, rtol=0)
    assert parent.tokenizer.n_vocab == KNOWN + 4  # PAD, A, IM_START, IM_END
    assert ours.config.padded_vocab_size == 512  # 470, and up to a multiple of 64
    assert ours.config.block_size == 40


def test_there_and_back(theirs):
    ours = from_hf(theirs.config.to_dict(), theirs.state_dict())
    torch.testing.assert_close(logits(ours, TOKENS), logits(theirs, TOKENS), atol=1e-4, rtol=0)
    config, tensors = to_hf(ours, type(theirs).__name__)
    assert config["model_type"] == theirs.config.model_type
    again = from_hf(config, tensors)
    assert again.config == ours.config
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, dict(again.named_parameters())[name]), name


@pytest.mark.parametrize("theirs", ["gpt2 untied, wide", "qwen3", "qwen2, yarn"], indirect=True)
def test_several_files_in_half_precision(theirs, vocabulary, tmp_path):
    rounded = {name: w.to(torch.bfloat16) for name, w in theirs.state_dict().items()}
    exact = type(theirs)(theirs.config).eval()
    exact.load_state_dict(rounded)  # float32 numbers that bfloat16 has
    half = type(theirs)(theirs.config).to(torch.bfloat16)
    half.load_state_dict(rounded)
    half.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = load(save(tmp_path, vocabulary)).model
    assert ours.wte.weight.dtype == torch.float32
    found, expected = logits(ours, TOKENS), logits(exact, TOKENS)
    torch.testing.assert_close(found[..., :KNOWN], expected[..., :KNOWN], atol=1e-4, rtol=0)


@pytest.mark.parametrize("theirs", ["gpt2"], indirect=True)
def test_names_without_the_first_part_and_with_masks(folder, theirs):
    """As the first GPT-2 files on the hub have them."""
    path = folder / "model.safetensors"
    tensors = {name.split(".", 1)[1]: t for name, t in load_file(path).items() if "lm_" not in name}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
    save_file(tensors, path)
    found = logits(load(f"hf:{folder}").model, TOKENS)[..., :KNOWN]
    torch.testing.assert_close(found, logits(theirs, TOKENS)[..., :KNOWN], atol=1e-4, rtol=0)


@pytest.mark.parametrize("theirs", ["gpt2", "qwen3 untied"], indirect=True)
def test_new_rows_are_near_the_mean_and_differ(source, theirs):
    parent = load(f"hf:{source}")
    ours, tokenizer = parent.model, parent.tokenizer
    first = min(tokenizer.special[name] for name in ("PAD", "A", "IM_START", "IM_END"))
    old = theirs.get_input_embeddings().weight.detach()
    for table, source in ((ours.wte, old), (ours.lm_head, theirs.lm_head.weight.detach())):
        assert torch.equal(table.weight[:first], source[:first])
        mean = source[:first].mean(0)
        for rows in (table.weight[first : first + 4], table.weight[470:]):  # PAD … IM_END; the rest
            assert 0 < (rows - mean).abs().max() < 0.1 * source.std()
    # A row of the source behind its last id, which none of ours needs, stays.
    assert torch.equal(ours.wte.weight[first + 4 : 470], old[first + 4 :])
    assert (ours.lm_head.weight is ours.wte.weight) == theirs.config.tie_word_embeddings
    assert ours.lm_head.weight.shape == (512, 32) and ours.wte.num_embeddings == 512


@pytest.mark.parametrize("theirs", ["gpt2", "qwen3"], indirect=True)
def test_block_size(source, theirs):
    shorter = load(f"hf:{source}", 24).model
    torch.testing.assert_close(
        logits(shorter, TOKENS)[..., :KNOWN], logits(theirs, TOKENS)[..., :KNOWN], atol=1e-4, rtol=0
    )
    if theirs.config.model_type == "qwen3":
        assert load(f"hf:{source}", 64).model.config.block_size == 64  # RoPE has no limit
    else:
        with pytest.raises(UserError, match=r"block_size=64.*at most --block_size=40"):
            load(f"hf:{source}", 64)


@pytest.mark.parametrize("theirs", ["llama3", "llama, linear", "qwen2, yarn"], indirect=True)
def test_the_spelling_of_transformers_4(folder, theirs):
    """rope_theta and rope_scaling with "type", and rope_parameters nowhere."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    path.write_text(json.dumps(config), encoding="utf-8")
    found = logits(load(f"hf:{folder}").model, TOKENS)[..., :KNOWN]
    torch.testing.assert_close(found, logits(theirs, TOKENS)[..., :KNOWN], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "more", [{}, dict(mscale=0.7, mscale_all_dim=1.2), dict(beta_slow=2.0, attention_factor=1.3)]
)
@pytest.mark.parametrize("kind", ["yarn", "llama3", "linear"])
def test_scaled_positions_of_a_long_text(kind, more):
    """Every frequency and every position; the original context is a top-level field, too."""
    scaling = dict(yarn=YARN, llama3=LLAMA3, linear=dict(rope_type="linear", factor=3.0))[kind]
    scaling = scaling | (more if kind == "yarn" else {})
    theirs = rope_model("Llama", scaling, head_dim=64, max_position_embeddings=300)
    ours = from_hf(theirs.config.to_dict(), theirs.state_dict())
    x = torch.zeros(1, 300)
    cos, sin = theirs.model.rotary_emb(x, torch.arange(300)[None])
    torch.testing.assert_close(ours.rotary.cos, cos[0, :, :32], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.rotary.sin, sin[0, :, :32], atol=1e-4, rtol=0)
    plain = rope_model("Llama", head_dim=64, max_position_embeddings=300)
    assert (
        ours.rotary.cos - plain.model.rotary_emb(x, torch.arange(300)[None])[0][0, :, :32]
    ).any()


def test_a_window_that_a_block_does_not_reach(vocabulary, tmp_path):
    """Mistral's sliding window changes nothing within its length."""
    theirs = randomized(rope_model("Mistral", sliding_window=16))
    theirs.save_pretrained(tmp_path)
    name = save(tmp_path, vocabulary)
    with pytest.raises(UserError, match=r"sliding_window=16.*at most --block_size=16"):
        load(name)
    ours = load(name, 16).model
    x = TOKENS[:, :16]
    torch.testing.assert_close(
        logits(ours, x)[..., :KNOWN], logits(theirs, x)[..., :KNOWN], atol=1e-4, rtol=0
    )
    facts = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del facts["sliding_window"]  # transformers then takes 4096
    (tmp_path / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    assert load(name).model.config.block_size == 40


@pytest.mark.parametrize(
    "theirs", ["llama, biases", "llama3", "mistral", "qwen2, yarn"], indirect=True
)
@pytest.mark.parametrize(("dtype", "kernels"), [("float32", 0), ("float32", 1), ("int8", 1)])
def test_generation_from_a_run(source, theirs, tmp_path, dtype, kernels):
    """The tokens of transformers, from the KV cache, by PyTorch and by the kernels; int8 has the
    likelihoods of float32 nearly."""
    if kernels and not shutil.which("g++"):
        pytest.skip("the kernels need a C++ compiler: apt-get install g++")
    parent = load(f"hf:{source}")
    parent.meta["prompt_format"] = "plain"
    checkpoint.resave(tmp_path, parent)
    ids = TOKENS[0, :10].tolist()
    trained = load_for_generation(tmp_path, "cpu", dtype, kernels)
    engine = Engine(trained.model, KNOWN, n_slots=1)  # only ids that both have
    (found,) = engine.generate([Request(ids, 12, temperature=0, logprobs=1)])
    whole = torch.tensor([ids + found.ids])
    expected = logits(theirs, whole)[0, len(ids) - 1 : -1, :KNOWN].log_softmax(-1)
    likelihoods = torch.tensor([token.logprob for token in found.tokens])
    wanted = expected.gather(1, torch.tensor(found.ids)[:, None])[:, 0]
    torch.testing.assert_close(
        likelihoods, wanted, atol=1e-4 if dtype == "float32" else 0.3, rtol=0
    )
    if dtype == "float32":
        assert expected.argmax(-1).tolist() == found.ids


# -- what is refused -------------------------------------------------------------------------------


def refused(folder, message, **facts):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **facts}), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load(f"hf:{folder}")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("theirs", ["gpt2"], indirect=True)
@pytest.mark.parametrize(
    ("message", "facts"),
    [
        ("architecture is GemmaForCausalLM", dict(architectures=["GemmaForCausalLM"])),
        ("Qwen3MoeForCausalLM, a mixture of exp", dict(architectures=["Qwen3MoeForCausalLM"])),
        ("a mixture of experts", dict(architectures=["MixtralForCausalLM"], num_local_experts=8)),
        ("MiniMindForCausalLM.*convert_model.py", dict(architectures=["MiniMindForCausalLM"])),
        ("lacks num_hidden_layers", dict(architectures=["LlamaForCausalLM"])),
        ("weights are quantized", dict(quantization_config={"quant_method": "gptq"})),
        ("architecture is model_type=opt", dict(architectures=None, model_type="opt")),
        ("activation_function=relu", dict(activation_function="relu")),
        ("scale_attn_by_inverse_layer_idx=True", dict(scale_attn_by_inverse_layer_idx=True)),
        ("n_embd", dict(n_embd="wide")),
        ("where config.json says", dict(n_embd=64)),
        ("weights lack h.2.ln_1.weight", dict(n_layer=3)),
        ("unexpected: h.1", dict(n_layer=1)),
    ],
)
def test_another_gpt2_is_refused(folder, message, facts):
    refused(folder, message, **facts)


@pytest.mark.parametrize("theirs", ["qwen3"], indirect=True)
@pytest.mark.parametrize(
    ("message", "facts"),
    [
        ("rope_type=dynamic", dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0})),
        ("rope_type=longrope", dict(rope_scaling={"type": "longrope", "factor": 2.0})),
        ("partial_rotary_factor=0.5", dict(partial_rotary_factor=0.5)),
        ("truncate=False", dict(rope_parameters=dict(rope_type="yarn", factor=2, truncate=False))),
        ("llama3 with .*expected", dict(rope_parameters={"rope_type": "llama3", "factor": 2.0})),
        ("factor=many: expected a number", dict(rope_scaling={"type": "linear", "factor": "many"})),
        ("differ by layer", dict(rope_parameters={"full_attention": {"rope_type": "default"}})),
        (
            "sliding_window=8: .*--block_size=8",
            dict(
                use_sliding_window=True,
                sliding_window=8,
                layer_types=["full_attention", "sliding_attention"],
            ),
        ),
        ("hidden_act=gelu", dict(hidden_act="gelu")),
    ],
)
def test_another_qwen3_is_refused(folder, message, facts):
    refused(folder, message, **facts)


@pytest.mark.parametrize("theirs", ["gpt2"], indirect=True)
def test_damaged_and_missing_files(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, "model.safetensors: cannot be read")
    path.unlink()
    refused(folder, "model.safetensors: missing")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "no weight_map")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: missing"):
        load(f"hf:{folder}")


@pytest.mark.parametrize("theirs", ["llama"], indirect=True)
def test_a_folder_of_theirs_without_hf(folder, tmp_path):
    """Wherever a run is expected the message has the word to give; nothing is overwritten."""
    start = f"--init_from=hf:{folder}"
    for script, word in (("train.py", "--init_from"), ("sample.py", "--out_dir")):
        for path in (folder, folder / "model.safetensors"):
            code, _, error = run_here(script, f"{word}={path}", *["--out_dir=x"] * (word[2] == "i"))
            assert code == 2 and start in error.splitlines()[-1]
    code, _, error = run_here("sample.py", f"--out_dir=hf:{folder}")
    assert code == 2 and start in error.splitlines()[-1]
    for more in ("--overwrite=true", "--init_from=resume"):
        code, _, error = run_here("train.py", f"--out_dir={folder}", more)
        assert code == 2 and start in error
    assert load(f"hf:{folder}")


# -- the whole way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", ["mistral"], indirect=True)
def test_prepare_train_and_sample_without_the_source(folder, theirs, tmp_path):
    from transformers import AutoModelForCausalLM

    texts = [f"第{n}年，黄河流经九个省区。e\u0301 Some words, {n * 7919}!" * 3 for n in range(60)]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
    )
    data, out = tmp_path / "data", tmp_path / "run"
    name = f"hf:{folder}"
    prepare = (f"--input={tmp_path}/texts.jsonl", f"--dataset={data}", f"--tokenizer={name}")
    code, _, error = run_here("data/prepare.py", *prepare, "--block_size=32", "--workers=1")
    assert code == 0, error
    common = f"--init_from={name} --dataset={data} --block_size=32 --batch_size=4 --device=cpu"
    common += " --gradient_accumulation_steps=1 --eval_iters=2 --sample_tokens=4 --warmup_iters=0"
    code, text, error = run_here("train.py", *common.split(), f"--out_dir={out}", "--max_iters=12")
    assert code == 0, error
    assert f"starting from {name}" in text
    losses = [json.loads(line).get("val_loss") for line in open(out / "log.jsonl")]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0] - 0.1
    bare = tmp_path / "bare"  # what adapters and DPO start from: not a step taken
    code, _, error = run_here("train.py", *common.split(), f"--out_dir={bare}", "--max_iters=0")
    assert code == 0, error
    found = logits(checkpoint.load(bare).model, TOKENS)[..., :KNOWN]
    torch.testing.assert_close(found, logits(theirs, TOKENS)[..., :KNOWN], atol=1e-4, rtol=0)
    code, _, error = run_here("train.py", *common.split(), f"--out_dir={bare}2", "--lora_rank=4")
    assert code == 2 and "make it one first" in error
    lora = common.replace(name, str(bare)).split()
    lora += [f"--out_dir={bare}2", "--lora_rank=4", "--max_iters=2"]
    assert run_here("train.py", *lora)[0] == 0
    for exported in (out, f"{bare}2"):  # its family comes back
        assert run_here("tools/export.py", f"--out_dir={exported}")[0] == 0
        again = AutoModelForCausalLM.from_pretrained(f"{exported}/hf").eval()
        assert type(again) is type(theirs) and again.config.sliding_window is None
        ours = checkpoint.load(exported).model
        torch.testing.assert_close(logits(ours, TOKENS), logits(again, TOKENS), atol=1e-4, rtol=0)
    shutil.rmtree(folder)
    tokenizer = checkpoint.load(out).tokenizer
    assert tokenizer.name == name
    assert tokenizer.decode(tokenizer.encode("黄河e\u0301")) == "黄河é"
    words = (f"--out_dir={out}", "--start=黄河", "--max_new_tokens=6", "--device=cpu")
    code, text, error = run_here("sample.py", *words)
    assert code == 0 and "黄河" in text, error
    code, _, error = run_here(
        "train.py", f"--out_dir={out}", "--init_from=resume", "--max_iters=13"
    )
    assert code == 0, error
