"""Chat templates: the text of each shipped one by hand, what is learned of it, what of a template
cannot be used; and that a run keeps its template until an answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import run_here, write_jsonl

from minigpt.common.errors import UserError
from minigpt.data.encoders import DialogueEncoder
from minigpt.data.formats import Conversation
from minigpt.data.prompts import chat_ids, prompt_ids, reply_text
from minigpt.models import checkpoint
from minigpt.tokenizer.chat_template import (
    TEMPLATES,
    TemplateRefused,
    find_template,
    from_json,
    load_template,
    name_of,
    to_json,
)
from minigpt.tokenizer.tokenizer import load_tokenizer

TURNS = (
    ("system", "S"),
    ("user", "Q1"),
    ("assistant", "A1"),
    ("user", "Q2"),
    ("assistant", "A2"),
)
# By hand: what is learned is in ⟦ ⟧.
TEXTS = {
    "chat": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
    "<|im_start|>assistant\n⟦A1<|im_end|>⟧\n<|im_start|>user\nQ2<|im_end|>\n"
    "<|im_start|>assistant\n⟦A2<|im_end|>⟧\n",
    "alpaca": "S\n\n### Instruction:\nQ1\n\n### Response:\n⟦A1<|endoftext|>⟧\n\n"
    "### Instruction:\nQ2\n\n### Response:\n⟦A2<|endoftext|>⟧\n\n",
    "vicuna": "S USER: Q1 ASSISTANT:⟦ A1<|endoftext|>⟧USER: Q2 ASSISTANT:⟦ A2<|endoftext|>⟧",
    "gemma": "<start_of_turn>user\nS\n\nQ1<end_of_turn>\n<start_of_turn>model\n⟦A1<|endoftext|>⟧\n"
    "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n⟦A2<|endoftext|>⟧\n",
}
PREAMBLES = {
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n",
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. ",
}


def shown(parts):
    """Parts as text, with what is learned in ⟦ ⟧."""
    text = "".join(f"⟦{part.text}⟧" if part.learned else part.text for part in parts)
    return text.replace("⟧⟦", "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_shipped_templates_by_hand(name):
    template = load_template(find_template(name))
    assert shown(template.parts(TURNS)) == TEXTS[name]
    assert shown(template.parts(TURNS[1:])).startswith(PREAMBLES.get(name, ""))
    assert name_of(find_template(name)) == name
    assert from_json(json.loads(json.dumps(to_json(find_template(name))))) == find_template(name)
    # The prompt: nothing in it is to be generated again.
    whole, prompt = TEXTS[name], "".join(p.text for p in template.parts(TURNS[:4], True))
    assert prompt == whole[: whole.rindex("⟦")].replace("⟦", "").replace("⟧", "")


MARKS = ["<|im_end|>", "<|endoftext|>", "<|im_start|>assistant\n", "### Response:", "\U000f0000"]
CONTENT = st.lists(st.sampled_from([*"ab 天。\n", *MARKS]), min_size=1).map("".join).map(str.strip)
CONTENT = CONTENT.filter(bool)


@given(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), st.sampled_from(TEMPLATES))
def test_what_a_message_spells_is_text_and_a_run_is_given_what_it_learned(exchanges, name):
    prompt_format, tokenizer = find_template(name), load_tokenizer("zh")
    template = load_template(prompt_format)
    turns = tuple(turn for q, a in exchanges for turn in (("user", q), ("assistant", a)))
    parts = template.parts(turns)
    learned = [part for part in parts if part.learned]
    texts = [part.text.removeprefix(template.lead) for part in learned if not part.special]
    assert texts == [answer for _, answer in exchanges]
    assert [part.special for part in learned if part.special] == [template.end] * len(exchanges)
    sample = DialogueEncoder(prompt_format).fit(Conversation(None, turns))
    ids = [tokenizer.encode(text) for text in DialogueEncoder(prompt_format).texts(sample)]

    class cutter:
        block_size = 10**9

    cutter.tokenizer = tokenizer
    ((row, *bounds),), *_ = DialogueEncoder(prompt_format).encode(sample, ids, cutter, "pad")
    for number, (_, answer) in enumerate(exchanges):
        prompt = chat_ids(tokenizer, prompt_format, turns[: 2 * number + 1], 10**9)
        reply = tokenizer.encode(reply_text(prompt_format, answer))
        first, last = bounds[2 * number : 2 * number + 2]
        assert row[:first].tolist() == prompt
        assert row[first:last].tolist() == [*prompt[:0], *reply, tokenizer.special[template.end]]


def test_roles_of_gemma_and_alpaca():
    for name in ("alpaca", "vicuna", "gemma"):
        with pytest.raises(TemplateRefused, match="a system message"):
            load_template(find_template(name)).parts((*TURNS, ("system", "S")))


# -- templates of other origin ---------------------------------------------------------------------

ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (  # with a BOS token, blanks around the answer, and strict roles
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKED = (  # with the block by which transformers finds what is learned
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ m['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}U:{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "expected", "end", "pairwise"),
    [
        (ZEPHYR, "<|user|>\nQ<|endoftext|>\n<|assistant|>\n⟦A<|endoftext|>⟧\n", "EOT", False),
        (LLAMA_2, "[INST] Q [/INST]⟦ A <|endoftext|>⟧", "EOT", True),
        (MARKED, "U:Q\nA:⟦A<|im_end|>⟧\n", "IM_END", False),
    ],
)
def test_a_file_of_ones_own(tmp_path, text, expected, end, pairwise):
    path = tmp_path / "mine.jinja"
    path.write_text(text, encoding="utf-8")
    template = load_template(find_template(str(path)))
    assert shown(template.parts((("user", "Q"), ("assistant", "A")))) == expected
    assert (template.end, template.pairwise) == (end, pairwise)
    assert name_of(find_template(str(path))) == "FILE.jinja"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for m in messages %}", "not a Jinja template (line 1: "),
        ("{{ messages[0]['content'] }}", "does not begin with the prompt for its answer"),
        (
            ZEPHYR.replace(" + eos_token", ""),
            "write {{ eos_token }} or <|im_end|> after its content",
        ),
        (ZEPHYR.replace("<|assistant|>\n{% endif", "{% endif"), "does not begin with the prompt"),
        ("{{ 1 // 0 }}", "refuses the messages: "),
        ("{{ messages.__class__.__mro__ }}", "refuses the messages: access to attribute"),
        ("x" * 70_000, "more than 65536 characters"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(tmp_path, text, says):
    path = tmp_path / "mine.jinja"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        find_template(str(path))
    message = str(error.value)
    assert message.startswith(f"--template={path}: ") and "\n" not in message
    assert says in message


def test_names_of_templates():
    with pytest.raises(UserError, match=r"expected qa, chat, alpaca, vicuna, gemma or FILE\.jinja"):
        find_template("llama")
    with pytest.raises(UserError, match="cannot be read"):
        find_template("missing.jinja")


# -- a run keeps its template ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, byte_tokenizer):
    """A run that was trained on two turns in a template of one's own, by the scripts."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "mine.jinja").write_text(LLAMA_2, encoding="utf-8")
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    records = [{"conversations": [{**turns[0], "value": f"{i}?"}, turns[1]] * 2} for i in range(40)]
    path = write_jsonl(folder / "chats.jsonl", records)
    words = [f"--tokenizer={byte_tokenizer.name}", "--block_size=96"]
    script = "data/prepare_sft.py", f"--input={path}", f"--template={folder / 'mine.jinja'}"
    code, _, errors = run_here(*script, f"--dataset={folder / 'data'}", "--workers=1", *words)
    assert code == 0, errors
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--max_iters=2", "--batch_size=4"]
    more = ["--gradient_accumulation_steps=1", "--eval_interval=2", "--eval_iters=1"]
    data = f"--dataset={folder / 'data'}", f"--out_dir={folder / 'run'}", "--device=cpu"
    code, _, errors = run_here("train.py", *data, *words, *shape, *more)
    assert code == 0, errors
    return folder


def test_a_run_keeps_its_template(tuned):
    trained = checkpoint.load(tuned / "run")
    assert trained.meta["prompt_format"] == "chat"
    assert LLAMA_2 in trained.meta["chat_template"] == trained.prompt_format
    prompt = trained.tokenizer.decode(prompt_ids(trained.tokenizer, trained.prompt_format, "Q"))
    assert prompt == "[INST] Q [/INST]"


def test_scripts_use_the_template_of_the_run(tuned):
    run = f"--out_dir={tuned / 'run'}", "--device=cpu"
    code, _, errors = run_here("sample.py", *run, "--start=7?", "--max_new_tokens=3")
    assert code == 0, errors
    code, printed, errors = run_here("evaluations-perplexity.py", *run)
    assert code == 0 and "the assistant's turns" in printed, errors
    sampling = "--max_new_tokens=3", f"--input={tuned / 'chats.jsonl'}", "--limit=4"
    code, printed, errors = run_here("evaluations-RougeL.py", *run, *sampling)
    assert code == 0 and "seen in training" in printed, errors


def test_a_broken_template_in_a_checkpoint_is_one_line(tuned, tmp_path):
    about = tuned / "run/config.json"
    text = about.read_text(encoding="utf-8")
    meta = json.loads(text)
    try:
        about.write_text(json.dumps(meta | {"chat_template": "{% if %}"}), encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.json: chat_template: not a Jinja template"):
            checkpoint.load(tuned / "run")
    finally:
        about.write_text(text, encoding="utf-8")
