"""Exports to Hugging Face's format, read by transformers: logits, ids, prompts, greedy text; which
fields of GPTConfig are exported; and where an export is written."""

import dataclasses
import functools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here, save_run, save_scripted_run
from tokenizers import Tokenizer as HFTokenizer

from minigpt.common.errors import UserError
from minigpt.data.prompts import FORMATS, chat_ids
from minigpt.data.train_bpe import token_ranks, train_bpe
from minigpt.inference.engine import Engine, Request
from minigpt.interop import export_folder, hf_export
from minigpt.interop import hf_import as hf
from minigpt.interop.hf_weights import to_hf
from minigpt.models import checkpoint
from minigpt.tokenizer.chat_template import TEMPLATES, find_template, template_text
from minigpt.tokenizer.export import chat_template, merges, token_texts, tokenizer_json
from minigpt.tokenizer.tokenizer import PATTERNS, SPECIAL_NAMES, Imported, Tokenizer, load_tokenizer
from model import GPTConfig

GPT2 = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, norm_eps=1e-5)
SHAPES = {
    "gpt2": GPT2 | dict(bias=True),
    "gpt2 without biases, untied": GPT2 | dict(tie_embeddings=False, n_hidden=48),
    "qwen3": dict(),
    "qwen3, grouped, untied": dict(
        n_kv_head=2, head_dim=12, rope_theta=500.0, norm_eps=1e-5, tie_embeddings=False
    ),
    "llama": dict(qk_norm=False, n_kv_head=2, norm_eps=1e-5),
    "llama, biases, long": dict(qk_norm=False, bias=True, rope_theta=500.0),
    "qwen2, long": dict(qk_norm=False, qkv_bias=True, n_kv_head=2, tie_embeddings=False),
}
LONG = {"original_max_position_embeddings": 16, "factor": 4.0}
SHAPES["llama, biases, long"]["rope_scaling"] = LONG | dict(
    rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0
)
SHAPES["qwen2, long"]["rope_scaling"] = LONG | dict(
    rope_type="yarn", beta_slow=1, beta_fast=32, attention_factor=0.1 * math.log(4) + 1
)

AWKWARD = [
    "他说：“好。”“不好！”然后走了……",
    "1998年8月，GDP增长7.8%；邮编100084。",
    "I'll say it's 3 o'clock,\tDON'T you?  \n\n  yes  ",
    "　　段首空两格\r\n——破折号————",
    "哈哈哈哈哈哈哈哈哈！！！！！！！",
    "漢字とカナ한글ñ🙂👩‍👩‍👧 \u00a0\u2028\u0085\ufeff\x00",
    "<|endoftext|><|im_start|>user<|im_end|>EOT##PAD",
    "aaaaaaaaa aaaa  aa\n\n\n\n##########",
]
texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="中国的，。“”12 a'sS\n\r\t　—.!哈#", max_size=60),
    st.lists(st.sampled_from(AWKWARD), max_size=4).map("".join),
)


@functools.cache
def tokenizer_called(name):
    """ "zh", "gpt2", or one trained on AWKWARD with the pattern of that name."""
    if name not in PATTERNS:
        return load_tokenizer(name)
    ranks = token_ranks(train_bpe(AWKWARD * 3, 400, name, 1))
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_NAMES)}
    return Tokenizer(name, ranks, PATTERNS[name], special)


@functools.cache
def written_tokenizer(name):
    """What `tokenizers` reads back from the tokenizer.json."""
    return HFTokenizer.from_str(tokenizer_json(tokenizer_called(name)).to_str())


def theirs_of(name, text):
    """The ids of text in which no special token is looked for."""
    hf = written_tokenizer(name)
    hf.encode_special_tokens = True
    return hf.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model):
    """exported(name of a shape, prompt format): (Checkpoint, folder of its export), made once."""

    @functools.cache
    def make(shape, prompt_format="chat"):
        tokenizer = load_tokenizer("zh")
        folder = tmp_path_factory.mktemp("run")
        model = tiny_model(
            padded_vocab_size=tokenizer.padded_vocab_size, block_size=64, **SHAPES[shape]
        )
        save_run(folder, model, tokenizer, prompt_format)
        trained = checkpoint.load(folder)
        hf_export.write_hf(folder / "hf", trained)
        return trained, folder / "hf"

    return make


def model_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zh", "gpt2", *PATTERNS])
@settings(max_examples=40)
@given(text=texts)
def test_ids(name, text):
    assert theirs_of(name, text) == tokenizer_called(name).encode(text)


@pytest.mark.parametrize("name", ["zh", "gpt2"])
def test_ids_of_real_text(shared_data, name):
    files = [path for path in sorted(shared_data.rglob("*")) if path.suffix in (".txt", ".jsonl")]
    for path in files:
        with open(path, encoding="utf-8") as file:
            text = file.read(10_000)
        assert theirs_of(name, text) == tokenizer_called(name).encode(text), path


def test_every_way_to_halve_a_token_in_the_order_of_the_ranks():
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"ab": 256, b"bc": 257, b"abc": 258, b" a": 259}
    special = {name: 260 + i for i, name in enumerate(SPECIAL_NAMES)}
    tokenizer = Tokenizer("small", ranks, PATTERNS["gpt-2"], special)
    pairs = (("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c"), ("Ġ", "a"))
    assert merges(tokenizer) == pairs
    texts = token_texts(tokenizer)
    assert texts[256:262] == ("ab", "bc", "abc", "Ġa", "<|endoftext|>", "<|pad|>")
    assert texts[264] == "<|im_end|>" and texts[265:] == tuple(
        f"<|unused_{i}|>" for i in range(265, 320)
    )


def test_a_token_that_no_merge_reaches():
    """tiktoken finds "abcd" whole, although no two tokens make it."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abcd": 256}
    special = {name: 257 + i for i, name in enumerate(SPECIAL_NAMES)}
    tokenizer = Tokenizer("small", ranks, PATTERNS["gpt-2"], special)
    assert tokenizer.encode("abcd") == [256] == tokenizer_json(tokenizer).encode("abcd").ids


@functools.cache
def imported_tokenizer():
    """One whose ids do not follow its ranks, that reads a token which it never writes, and that
    brings text to NFC."""
    ours = tokenizer_called("qwen2")
    ranks = {ours.decode_bytes([i]): i for i in range(ours.eot)}
    ids = [*range(len(ranks) - 1, -1, -1)]
    unwritten = {len(ranks): b"think"}
    special = {name: len(ranks) + 1 + i for i, name in enumerate(SPECIAL_NAMES)}
    imported = Imported(ids, unwritten, True)
    return Tokenizer("hf:it", ranks, PATTERNS["qwen2"], special, (), imported)


@settings(max_examples=40)
@given(text=st.one_of(texts, st.just("think cafe\u0301")))
def test_ids_of_an_imported_vocabulary(text):
    ours = imported_tokenizer()
    theirs = HFTokenizer.from_str(tokenizer_json(ours).to_str())
    theirs.encode_special_tokens = True
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ids == ours.encode(text)
    assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.decode([ours.eot - 1]) == "think"


def test_auto_tokenizer(exported):
    trained, folder = exported("qwen3")
    ours, theirs = trained.tokenizer, tokenizer_of(folder)
    for text in AWKWARD:
        assert theirs.encode(text, split_special_tokens=True) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    special = ["<|endoftext|>", "<|pad|>", "<|answer|>", "<|im_start|>", "<|im_end|>"]
    assert theirs.encode("".join(special)) == [ours.special[name] for name in SPECIAL_NAMES]
    assert theirs.decode([ours.eot, *ours.encode("好"), ours.pad], skip_special_tokens=True) == "好"
    assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == (
        *("<|im_end|>", "<|pad|>", None),
    )
    assert theirs.model_max_length == 64 and len(theirs) == ours.n_vocab


def test_gpt2_keeps_its_answer_mark_and_its_end():
    texts = token_texts(load_tokenizer("gpt2"))
    assert (texts[2235], texts[50256], texts[50258]) == ("##", "<|endoftext|>", "<|im_start|>")


# -- prompts ---------------------------------------------------------------------------------------

# An answer that begins with a blank would join with the line break before it.
contents = st.text(alphabet="中国？a1 \n.'\"\\{}%", max_size=20)
answers = contents.map(str.lstrip)
turns = st.one_of(
    st.tuples(st.sampled_from(["user", "system", "教师"]), contents),
    st.tuples(st.just("assistant"), answers),
)
conversations = st.tuples(st.lists(turns, max_size=3), contents, st.lists(turns, max_size=2)).map(
    lambda parts: [*parts[0], ("user", parts[1]), *parts[2]]
)


def rendered(theirs, messages):
    turns = [{"role": role, "content": content} for role, content in messages]
    return theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]


@pytest.fixture(scope="module")
def chatting(exported):
    """chatting(prompt format): (our tokenizer, transformers')."""

    @functools.cache
    def make(prompt_format):
        trained, folder = exported("qwen3", prompt_format)
        return trained.tokenizer, tokenizer_of(folder)

    return make


@pytest.mark.parametrize("prompt_format", FORMATS)
@settings(max_examples=30)
@given(messages=conversations)
def test_prompts(chatting, prompt_format, messages):
    ours, theirs = chatting(prompt_format)
    assert rendered(theirs, messages) == chat_ids(ours, prompt_format, messages, 10_000)


# A system text comes first, and contents have no blanks at their ends, as where data are prepared.
stripped = contents.map(str.strip).filter(bool)
exchanges = st.lists(st.tuples(stripped, stripped), max_size=2)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(system=st.just("") | stripped, earlier=exchanges, question=stripped)
def test_prompts_of_templates(chatting, name, system, earlier, question):
    prompt_format = find_template(name)
    ours, theirs = chatting(prompt_format)
    messages = [("system", system)] if system else []
    for asked, answered in earlier:
        messages += [("user", asked), ("assistant", answered)]
    messages.append(("user", question))
    assert rendered(theirs, messages) == chat_ids(ours, prompt_format, messages, 10_000)
    assert theirs.chat_template == template_text(prompt_format)


@pytest.mark.parametrize("prompt_format", ["qa", "plain"])
def test_a_prompt_needs_a_question(chatting, prompt_format):
    _, theirs = chatting(prompt_format)
    with pytest.raises(Exception, match='expected one with the role "user"'):
        rendered(theirs, [("system", "好")])


def test_the_classic_answer_mark_follows_the_question():
    template = chat_template(load_tokenizer("gpt2"), "qa")
    assert '{{ last.question + "##" }}' in template


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_logits(exported, shape):
    trained, folder = exported(shape)
    x = torch.randint(
        trained.tokenizer.padded_vocab_size, (2, 64), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        ours, theirs = trained.model.logits(trained.model(x)), model_of(folder)(x).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "shape", ["gpt2 without biases, untied", "qwen3, grouped, untied", "llama, biases, long"]
)
def test_greedy_text(exported, shape):
    trained, folder = exported(shape)
    ids = trained.tokenizer.encode("中国的首都是")
    engine = Engine(trained.model, n_slots=1)
    ours = list(engine.stream(engine.submit(Request(ids, 40, temperature=0))))
    theirs = model_of(folder).generate(
        torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=None
    )
    assert ours == theirs[0, len(ids) :].tolist() and len(set(ours)) > 3


def test_generation_ends_where_ours_does(tmp_path, byte_tokenizer):
    save_scripted_run(tmp_path, byte_tokenizer, "Paris")
    hf_export.write_hf(tmp_path / "hf", checkpoint.load(tmp_path))
    theirs = tokenizer_of(tmp_path / "hf")
    ids = rendered(theirs, [("user", "Q?")])
    written = model_of(tmp_path / "hf").generate(torch.tensor([ids]), max_new_tokens=20)
    assert theirs.decode(written[0]) == "Q?<|answer|>Paris<|endoftext|>"
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text("utf-8"))
    special = byte_tokenizer.special
    assert settings["eos_token_id"] == [special["EOT"], special["IM_END"]]
    assert settings["pad_token_id"] == special["PAD"]


@pytest.mark.parametrize("shape", ["gpt2", "qwen3, grouped, untied", "qwen2, long"])
def test_an_export_comes_back(exported, shape):
    trained, folder = exported(shape)
    back = hf.load(f"hf:{folder}", 64)
    ours, theirs = trained.model.state_dict(), back.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert back.tokenizer.special == trained.tokenizer.special
    for text in AWKWARD:
        assert back.tokenizer.encode(text) == trained.tokenizer.encode(text)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_the_weights_rounded(exported, tmp_path, dtype):
    trained, _ = exported("gpt2")
    hf_export.write_hf(tmp_path / "hf", trained, dtype)
    theirs = model_of(tmp_path / "hf")
    assert str(theirs.dtype) == f"torch.{dtype}" == str(theirs.transformer.wte.weight.dtype)
    expected = trained.model.blocks[1].mlp.fc.weight.to(export_folder.DTYPES[dtype])
    assert torch.equal(theirs.transformer.h[1].mlp.c_fc.weight.t(), expected)


def test_a_value_outside_the_range_of_float16(tmp_path, tiny_model, byte_tokenizer):
    model = tiny_model(padded_vocab_size=byte_tokenizer.padded_vocab_size)
    with torch.no_grad():
        model.norm.weight[3] = 70_000
    trained = checkpoint.load(save_run(tmp_path, model, byte_tokenizer))
    with pytest.raises(UserError, match=r"model\.norm\.weight has 7e\+04.*bfloat16"):
        hf_export.write_hf(tmp_path / "hf", trained, "float16")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        (dict(norm="layernorm"), ["Qwen3ForCausalLM, has no norm=layernorm"]),
        (dict(bias=True), ["Qwen3ForCausalLM, has no mlp_bias=True"]),
        (dict(qk_norm=False, mlp="gelu"), ["LlamaForCausalLM, has no mlp=gelu"]),
        (
            dict(qk_norm=False, mlp_bias=True, n_head=6, head_dim=8),
            ["LlamaForCausalLM, has no n_head=6"],
        ),
        (GPT2 | dict(n_kv_head=2), ["GPT2LMHeadModel, has no n_kv_head=2"]),
        (GPT2 | dict(head_dim=16), ["GPT2LMHeadModel, has no head_dim=16"]),
    ],
)
def test_a_shape_of_neither(tmp_path, tiny_model, byte_tokenizer, knobs, named):
    model, meta = tiny_model(padded_vocab_size=320, **knobs), {"prompt_format": "plain"}
    trained = checkpoint.Checkpoint(tmp_path, model, byte_tokenizer, meta)
    with pytest.raises(UserError) as error:
        hf_export.write_hf(tmp_path / "hf", trained)
    assert all(name in str(error.value) for name in named) and "\n" not in str(error.value)


# What the export does with each field of GPTConfig, and a value other than the test's own.
# exported: config.json has it.  free: no other value changes what the exported model computes.
# refused: only one value can be exported.
REFUSED = dict(
    norm=("refused", "layernorm"),
    mlp=("refused", "gelu"),
    position=("refused", "learned"),
    qkv_bias=("refused", True),
    mlp_bias=("refused", True),
)
EXPORTED = dict(
    padded_vocab_size=("exported", 128),
    block_size=("exported", 32),
    n_layer=("exported", 1),
    n_head=("exported", 2),
    n_embd=("exported", 48),
    n_hidden=("exported", 72),
    tie_embeddings=("exported", False),
    norm_eps=("exported", 1e-3),
    dropout=("exported", 0.25),
)
FIELDS = {
    "qwen3": REFUSED
    | EXPORTED
    | dict(
        bias=("refused", True),
        qk_norm=("exported", False),  # as Llama
        n_kv_head=("exported", 2),
        head_dim=("exported", 12),
        rope_theta=("exported", 500.0),
        rope_scaling=("exported", {"rope_type": "linear", "factor": 2.0}),
    ),
    "gpt2": EXPORTED
    | dict(
        norm=("refused", "rmsnorm"),
        mlp=("refused", "swiglu"),
        position=("refused", "rope"),
        qk_norm=("refused", True),
        n_kv_head=("refused", 2),
        head_dim=("refused", 12),
        bias=("free", False),  # biases of 0 are exported
        qkv_bias=("free", False),
        mlp_bias=("free", False),
        rope_scaling=("free", {"rope_type": "linear", "factor": 2.0}),
        rope_theta=("free", 500.0),
    ),
}


@pytest.mark.parametrize(
    ("shape", "field"), [(shape, f.name) for shape in FIELDS for f in dataclasses.fields(GPTConfig)]
)
def test_every_field_is_exported_free_or_refused(tiny_model, shape, field):
    """A field that is new in GPTConfig fails here until somebody decides what it is."""
    assert field in FIELDS[shape], f"is {field} exported, free or refused? Add it to FIELDS"
    kind, value = FIELDS[shape][field]
    usual = tiny_model(**SHAPES[shape])
    other = tiny_model(**SHAPES[shape] | {field: value})
    assert getattr(usual.config, field) != value
    if kind == "refused":
        with pytest.raises(UserError, match=f"{field}={value}"):
            to_hf(other)
        return
    (before, _), (config, weights) = to_hf(usual), to_hf(other)
    assert (config != before) is (kind == "exported")
    back = hf.from_hf(config, weights)
    if field == "dropout":  # an import does not take it: it is a setting of training
        assert value in config.values()
    elif kind == "exported":
        assert getattr(back.config, field) == value
    x = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(back.logits(back(x)), other.logits(other(x)))


# -- where it is written ---------------------------------------------------------------------------


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot be written .*give another --output"),
        export_folder.exported(tmp_path / "file" / "it"),
    ):
        pass


# -- the script ------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path, byte_tokenizer):
    return save_scripted_run(tmp_path / "out" / "small", byte_tokenizer, "Paris")


def test_export_says_what_it_wrote_and_what_comes_next(run_folder):
    code, output, complaint = run_here("tools/export.py", f"--out_dir={run_folder}")
    assert (code, complaint) == (0, "")
    folder = run_folder / "hf"
    assert sorted(path.name for path in folder.iterdir()) == sorted(hf_export.FILES)
    for name in hf_export.FILES:
        assert f"{(folder / name).stat().st_size:,} bytes  {folder / name}" in output
    assert "note: head_dim=14" in output
    assert f"vllm serve {folder} --served-model-name small" in output
    assert run_here("tools/export.py", f"--out_dir={run_folder}", "--dtype=bfloat16")[0] == 0
    assert json.loads((folder / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def test_the_answer_mark_of_gpt2_is_noted(tmp_path, tiny_model):
    gpt2 = load_tokenizer("gpt2")
    save_run(tmp_path, tiny_model(padded_vocab_size=gpt2.padded_vocab_size, n_embd=8), gpt2, "qa")
    code, output, _ = run_here("tools/export.py", f"--out_dir={tmp_path}")
    assert code == 0 and 'note: the answer mark "##" is ordinary text in gpt2' in output


def complaint_of(run_folder, *words):
    code, output, complaint = run_here("tools/export.py", f"--out_dir={run_folder}", *words)
    assert (code, output) == (2, "") and complaint.count("\n") == 1
    return complaint


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("notes.txt", "mine", "holds notes.txt"),
        ("config.json", "{}", "holds another model"),
        ("config.json", "no JSON", "holds files of another model"),
        ("model.safetensors", "another", "holds files of another model"),
    ],
)
def test_nothing_but_an_export_is_replaced(run_folder, tmp_path, name, text, found):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text(text)
    complaint = complaint_of(run_folder, f"--output={folder}")
    assert f"{folder}: {found}; only an earlier export is replaced" in complaint
    assert (folder / name).read_text() == text and len(list(folder.iterdir())) == 1


def test_the_run_itself_is_not_replaced(run_folder):
    complaint = complaint_of(run_folder, f"--output={run_folder}")
    assert "only an earlier export is replaced" in complaint
    checkpoint.load(run_folder)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dtype=q8_0"], "--dtype=q8_0: only for --format=gguf"),
        (["--output=x.gguf"], "--format=hf writes a folder"),
        (["--format=gguf", "--output=x"], "--format=gguf writes a file, NAME.gguf"),
        (["--out_dir=nowhere"], "nowhere: no trained run here"),
    ],
)
def test_mistakes(run_folder, words, expected):
    assert expected in complaint_of(run_folder, *words)


def test_a_file_in_the_place_of_the_folder(run_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in complaint_of(run_folder, f"--output={tmp_path / 'file'}")
