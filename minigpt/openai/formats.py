"""Answers in OpenAI's two formats, chat and completion: token strings, logprobs, whole answers and
the chunks of a stream."""

# -- how tokens are written ------------------------------------------------------------------------


class TokenTexts:
    """Tokens as texts, a different one for each id: bytes that are not whole characters as
    "bytes:\\xe4\\xb8", special ids by their names.

    special: id → name of each special id.
    """

    def __init__(self, tokenizer, special):
        self._tokenizer, self._special, self._texts = tokenizer, special, {}

    def __getitem__(self, token_id):
        """The text of a token."""
        if token_id not in self._texts:
            self._texts[token_id] = self._text(token_id)
        return self._texts[token_id]

    def bytes(self, token_id):
        """The bytes of a token as a list; empty for a special id."""
        return list(self._tokenizer.decode_bytes([token_id]))

    def _text(self, token_id):
        data = self._tokenizer.decode_bytes([token_id])
        if not data:
            return self._special.get(token_id, f"<|{token_id}|>")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(texts, tokens):
    """Tokens, as (Token, offset), in the format of chat answers. texts: TokenTexts."""

    def entry(token_id, logprob):
        return dict(token=texts[token_id], logprob=logprob, bytes=texts.bytes(token_id))

    content = [
        dict(entry(t.id, t.logprob), top_logprobs=[entry(*each) for each in t.top])
        for t, _ in tokens
    ]
    return dict(content=content, refusal=None)


def completion_logprobs(texts, tokens):
    """Tokens, as (Token, offset), in the format of completions. A token is listed among the most
    likely ones even if it is not one of them; the first of a prompt has no probability."""

    def top(token):
        if token.logprob is None:
            return None
        likeliest = {texts[i]: logprob for i, logprob in token.top}
        return {**likeliest, texts[token.id]: token.logprob}

    return dict(
        tokens=[texts[token.id] for token, _ in tokens],
        token_logprobs=[token.logprob for token, _ in tokens],
        top_logprobs=[top(token) for token, _ in tokens],
        text_offset=[offset for _, offset in tokens],
    )


# -- answers ---------------------------------------------------------------------------------------


class ChatFormat:
    """The format of chat answers."""

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
        """The chunks before the first text, with the role."""
        role = dict(role="assistant", content="")
        return [self._chunk(generation, choice.index, role) for choice in generation.choices]

    def chunks(self, generation, piece):
        """The chunks of a Piece; the finish_reason has its own."""
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
        return chat_logprobs(generation.served.token_texts, tokens) if self._logprobs else None


class CompletionFormat:
    """The format of completions: chunks have the format of the whole answer."""

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
        logprobs = None
        if self._logprobs:
            logprobs = completion_logprobs(generation.served.token_texts, part.tokens)
        reason = part.finish_reason
        return dict(index=part.index, text=part.text, logprobs=logprobs, finish_reason=reason)


def _head(generation, kind):
    name = generation.served.name
    return dict(id=generation.id, object=kind, created=generation.created, model=name)
