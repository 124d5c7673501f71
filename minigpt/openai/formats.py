"""How an answer is written in OpenAI's two forms, chat and completion: token strings, logprobs,
whole answers and the chunks of a stream."""

from functools import lru_cache

from minigpt.tokenizer.huggingface import SPECIAL_TEXTS

# -- how tokens are spelled ------------------------------------------------------------------------


@lru_cache(maxsize=1 << 17)
def token_string(tokenizer, token_id):
    """A token as text, another one for each id: bytes that are no whole characters are spelled
    "bytes:\\xe4\\xb8", special ids as our exports have them."""
    data = tokenizer.decode_bytes([token_id])
    if not data:
        names = {i: SPECIAL_TEXTS[name] for name, i in tokenizer.special.items()}
        return names.get(token_id, f"<|{token_id}|>")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer, tokens):
    """Tokens, as (Token, offset), in the form of chat answers."""

    def entry(token_id, logprob):
        data = tokenizer.decode_bytes([token_id])
        return dict(token=token_string(tokenizer, token_id), logprob=logprob, bytes=list(data))

    content = [
        dict(entry(t.id, t.logprob), top_logprobs=[entry(*each) for each in t.top])
        for t, _ in tokens
    ]
    return dict(content=content, refusal=None)


def completion_logprobs(tokenizer, tokens):
    """Tokens, as (Token, offset), in the form of completions. A token stands among the likeliest
    whether it is one of them or not; the first of a prompt has no probability."""

    def top(token):
        if token.logprob is None:
            return None
        likeliest = {token_string(tokenizer, i): logprob for i, logprob in token.top}
        return {**likeliest, token_string(tokenizer, token.id): token.logprob}

    return dict(
        tokens=[token_string(tokenizer, token.id) for token, _ in tokens],
        token_logprobs=[token.logprob for token, _ in tokens],
        top_logprobs=[top(token) for token, _ in tokens],
        text_offset=[offset for _, offset in tokens],
    )


# -- answers ---------------------------------------------------------------------------------------


class ChatForm:
    """How a chat's answer is written."""

    def __init__(self, asked):
        self._logprobs = asked.logprobs

    def whole(self, generation):
        """The answer as a dict."""
        choices = [
            dict(
                index=choice.index,
                message=dict(role="assistant", content=choice.text, refusal=None),
                logprobs=self._logprobs_of(generation, choice.tokens),
                finish_reason=choice.finish_reason,
            )
            for choice in generation.choices
        ]
        return dict(_head(generation, "chat.completion"), choices=choices)

    def opening(self, generation):
        """The chunks before the first text: who speaks."""
        speaks = dict(role="assistant", content="")
        return [self._chunk(generation, choice.index, speaks) for choice in generation.choices]

    def chunks(self, generation, piece):
        """The chunks of a Piece; its end is one of its own."""
        if piece.text or piece.tokens:
            logprobs = self._logprobs_of(generation, piece.tokens)
            yield self._chunk(generation, piece.index, dict(content=piece.text), logprobs)
        if piece.finish_reason:
            yield self._chunk(generation, piece.index, {}, reason=piece.finish_reason)

    def head(self, generation):
        """What every chunk has in common."""
        return _head(generation, "chat.completion.chunk")

    def _chunk(self, generation, index, delta, logprobs=None, reason=None):
        choice = dict(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return dict(self.head(generation), choices=[choice])

    def _logprobs_of(self, generation, tokens):
        return chat_logprobs(generation.served.tokenizer, tokens) if self._logprobs else None


class CompletionForm:
    """How a completion's answer is written: chunks have the form of the whole."""

    def __init__(self, asked):
        self._logprobs = asked.logprobs is not None

    def whole(self, generation):
        """The answer as a dict."""
        choices = [self._choice(generation, choice) for choice in generation.choices]
        return dict(self.head(generation), choices=choices)

    def opening(self, generation):
        """Nothing comes before the first text."""
        return []

    def chunks(self, generation, piece):
        """The one chunk of a Piece."""
        yield dict(self.head(generation), choices=[self._choice(generation, piece)])

    def head(self, generation):
        """What every chunk has in common."""
        return _head(generation, "text_completion")

    def _choice(self, generation, part):
        tokenizer, logprobs = generation.served.tokenizer, None
        if self._logprobs:
            logprobs = completion_logprobs(tokenizer, part.tokens)
        reason = part.finish_reason
        return dict(index=part.index, text=part.text, logprobs=logprobs, finish_reason=reason)


def _head(generation, kind):
    name = generation.served.name
    return dict(id=generation.id, object=kind, created=generation.created, model=name)
