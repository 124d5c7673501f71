"""A run's vocabulary in the formats of other programs: token texts, merges, a chat template.

    texts = token_texts(tokenizer)                  # a text for every embedding row
    pairs = merges(tokenizer)                       # the merges of byte-level BPE, in their order
    template = chat_template(tokenizer, "chat")     # Jinja: messages → the text of a prompt
    tokenizer_json(tokenizer)                       # a `tokenizers.Tokenizer` with the same ids

tiktoken has only tokens: it merges two neighbours whenever their bytes together are a token, the
lowest rank first. Other programs have pairs, so each way to halve a token becomes a pair, in the
order of the ranks.

Special ids get a text each, such as "<|endoftext|>". In other programs that text in a prompt is the
special id; in ours it is text.
"""

import functools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minigpt.tokenizer.chat_template import kind_of, template_text
from minigpt.tokenizer.huggingface import SPECIAL_TEXTS, byte_characters

# Simple Jinja: each program that reads it has an interpreter of its own.
_LAST_QUESTION = """\
{%- set last = namespace(question=none) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set last.question = message['content'] -%}{%- endif -%}
{%- endfor -%}
{%- if last.question is none -%}
{{ raise_exception('messages: expected one with the role "user"') }}
{%- endif -%}
{{ last.question + MARK }}
"""


@functools.lru_cache(maxsize=2)
def special_texts(tokenizer):
    """{id: text} of the special ids without a text of their own. An answer mark that is an ordinary
    token, as "##" of gpt2, is not among them."""
    return {
        tokenizer.special[name]: text
        for name, text in SPECIAL_TEXTS.items()
        if not tokenizer.decode_bytes([tokenizer.special[name]])
    }


@functools.lru_cache(maxsize=2)
def token_texts(tokenizer):
    """A text for each of the padded_vocab_size ids, no two alike: an ordinary token's bytes in the
    characters of byte-level BPE, a special id's text, "<|unused_N|>" for a row of padding."""
    characters, special = byte_characters(), special_texts(tokenizer)
    return tuple(
        "".join([characters[byte] for byte in tokenizer.decode_bytes([i])])
        or special.get(i, f"<|unused_{i}|>")
        for i in range(tokenizer.padded_vocab_size)
    )


@functools.lru_cache(maxsize=2)
def merges(tokenizer):
    """((left, right), …), texts of token_texts(): every pair of tokens whose bytes make a token, in
    the order of the ranks of those tokens."""
    texts = token_texts(tokenizer)
    written = [texts[i] for i in _written(tokenizer)]
    known = set(written)
    return tuple(
        (text[:cut], text[cut:])
        for text in written
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    )


def _written(tokenizer):
    """The ids that encoding gives, in the order of their ranks."""
    imported = tokenizer.imported
    if imported and imported.ids:
        return imported.ids
    unwritten = imported.unwritten if imported else ()
    ids = range(tokenizer.padded_vocab_size)
    return [i for i in ids if tokenizer.decode_bytes([i]) and i not in unwritten]


def tokenizer_json(tokenizer):
    """A `tokenizers.Tokenizer` that gives the same ids; its to_str() is a tokenizer.json."""
    texts = token_texts(tokenizer)[: tokenizer.n_vocab]
    bpe = models.BPE({text: i for i, text in enumerate(texts)}, list(merges(tokenizer)))
    # tiktoken looks up a whole pre-token before it merges anything; it does not have the tokens of
    # an imported vocabulary that are only decoded.
    imported = tokenizer.imported
    bpe.ignore_merges = not (imported and imported.unwritten)
    whole = Tokenizer(bpe)
    if imported and imported.nfc:
        whole.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(tokenizer.pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    whole.decoder = decoders.ByteLevel()
    special = special_texts(tokenizer).values()
    whole.add_special_tokens([AddedToken(text, special=True) for text in special])
    return whole


def tokenizer_config(tokenizer, prompt_format, block_size):
    """tokenizer_config.json as a dict: the class that reads tokenizer.json, special tokens, chat
    template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": token_texts(tokenizer)[end_id(tokenizer, prompt_format)],
        "pad_token": SPECIAL_TEXTS["PAD"],
        "chat_template": chat_template(tokenizer, prompt_format),
    }


def end_id(tokenizer, prompt_format):
    """The id that ends the output of a model of this format, and `eos_token` in its template."""
    return tokenizer.special["IM_END"] if prompt_format == "chat" else tokenizer.eot


def end_ids(tokenizer):
    """The ids that end a text. PAD, which ends a text here as well, is not among them: a program
    with PAD as an end could not tell it from padding."""
    return sorted({tokenizer.eot, tokenizer.special["IM_END"]})


def chat_template(tokenizer, prompt_format):
    """A Jinja template: messages with one of the user → the text whose ids are prompts.chat_ids().

    If the answer mark is an ordinary token, it is text after the question: a question whose last
    characters merge with it (gpt2: one that ends in "#") becomes other ids.
    """
    if kind_of(prompt_format) == "chat":
        return template_text(prompt_format)
    mark = answer_mark_text(tokenizer) if prompt_format == "qa" else ""
    return _LAST_QUESTION.replace("MARK", json.dumps(mark, ensure_ascii=False))


def answer_mark_text(tokenizer):
    """The text of the answer mark."""
    mark = tokenizer.answer_mark
    return special_texts(tokenizer).get(mark) or tokenizer.decode([mark])
