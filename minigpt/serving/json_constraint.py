"""Constrained decoding: answers that are JSON by a schema, with the library llguidance.

    table = token_table(tokenizer, stop_ids)                    # once for each tokenizer
    constraint = JsonConstraint.of_schema(table, schema, stop_ids)
    Request(ids, stop_ids=stop_ids, constraint=constraint)      # one for each request: copy()

llguidance compiles the schema to a grammar and says before each token which ids keep the text a
beginning of JSON that the schema describes. A text ends when it is whole, or at max_new_tokens.
"""

import json

import numpy as np
import torch

from minigpt.common.errors import UserError
from minigpt.common.report import one_line

# As json.dumps writes it. Without the library's free blanks: a weak model writes nothing else.
STYLE = dict(whitespace_flexible=False, item_separator=", ", key_separator=": ")


MOST_SCHEMA = 1 << 16  # characters of a schema: larger ones take seconds to compile
# Of the automaton, which grows as a text is written; the library's own limit is 500 MB.
MOST_LEXER_STATES = 20_000


class JsonConstraint:
    """Which ids may follow in one text, as engine.Request.constraint wants it."""

    def __init__(self, matcher, n_vocab, stop_ids):
        self._matcher, self._n_vocab, self._stop_ids = matcher, n_vocab, list(stop_ids)
        self._n_read = 0  # generated ids that the matcher knows

    @classmethod
    def of_schema(cls, table, schema, stop_ids):
        """The constraint to a JSON schema (a dict).

        table: of token_table(); stop_ids: the ids that end the text, allowed where it is whole.
        UserError where the schema is wrong, too large, or uses what the library cannot enforce.
        """
        from llguidance import LLMatcher, LLParserLimits

        text = json.dumps(schema)
        if len(text) > MOST_SCHEMA:
            raise UserError(f"the schema has {len(text)} characters; expected up to {MOST_SCHEMA}")
        limits = LLParserLimits(max_lexer_states=MOST_LEXER_STATES, verbose_errors=False)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=STYLE)
            matcher = LLMatcher(table, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise UserError(one_line(str(error), most=300)) from None
        if matcher.is_error():
            raise UserError(one_line(matcher.get_error(), most=300))
        return cls(matcher, table.vocab_size, stop_ids)

    def copy(self):
        """The same constraint for another text. Much cheaper than compiling the schema again."""
        return JsonConstraint(self._matcher.deep_copy(), self._n_vocab, self._stop_ids)

    def allowed(self, generated):
        """A bool tensor (n_vocab,): the ids that may follow the generated ones. After a failure
        only those that end the text."""
        for token in generated[self._n_read :]:
            self._matcher.consume_token(token)
        self._n_read = len(generated)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, bitorder="little")[: self._n_vocab].astype(bool)
        if self.error is not None:
            allowed[:] = False
            allowed[self._stop_ids] = True
        return torch.from_numpy(allowed)

    @property
    def error(self):
        """Why the text is not what the schema describes, or None: the schema was too complex at
        some place of the text."""
        return one_line(self._matcher.get_error(), most=300) if self._matcher.is_error() else None


def token_table(tokenizer, stop_ids):
    """The tokenizer's tokens as llguidance reads them. UserError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise UserError(
            "constrained decoding needs a package that is not installed here: "
            "pip install llguidance"
        ) from None
    stops = list(dict.fromkeys(stop_ids))
    wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
    return llguidance.LLTokenizer(wrapper, n_vocab=tokenizer.n_vocab, eos_token=stops)


class _Vocabulary:
    """A tokenizer in the form that llguidance takes: called with bytes it gives ids."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eot, None
        self.special_token_ids = sorted(set(tokenizer.special.values()))
        self.tokens = tokenizer.tokens[: tokenizer.n_vocab]
        for name, i in tokenizer.special.items():  # no two tokens may have the same bytes
            self.tokens[i] = f"<|{name}|>".encode()

    def __call__(self, data):
        return self._tokenizer.encode_bytes(data)
