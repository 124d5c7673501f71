"""Prompt formats: how what a person asks becomes the ids that a model continues.

A checkpoint records its format, so nothing guesses: "plain" continues the text as it is, "qa"
puts the answer mark after a question, "chat" reads turns in ChatML's marks. Prepared conversations
are spelled here, too: what a model learned to continue is what it is given to continue.
"""

from array import array

from minigpt.common.errors import UserError

FORMATS = ("plain", "qa", "chat")


class TooLong(UserError):
    """A prompt of `length` ids where there is room for `room`."""

    def __init__(self, length, room):
        super().__init__(f"the prompt has {length} tokens; this model has room for {room}")
        self.length, self.room = length, room


def prompt_ids(tokenizer, prompt_format, text):
    """The ids to continue for a person's `text`."""
    if prompt_format == "chat":
        return [*_encoded_turn(tokenizer, "user", text), *_opening_ids(tokenizer)]
    ids = tokenizer.encode(text)
    return [*ids, tokenizer.answer_mark] if prompt_format == "qa" else ids


def chat_ids(tokenizer, prompt_format, messages, room, truncate=None):
    """The ids to continue for a conversation: messages is [(role, content), …].

    "plain" and "qa" models read the last user message alone; "chat" models read every turn.
    truncate="oldest" drops turns, the oldest first, until at most `room` ids are left: never the
    system's, never the last user message or what follows it. UserError where no user speaks,
    TooLong where it does not fit.
    """
    asked = [i for i, (role, _) in enumerate(messages) if role == "user"]
    if not asked:
        raise UserError('messages: expected one with the role "user"')
    if prompt_format == "chat":
        return _chat_prompt(tokenizer, messages, asked[-1], room, truncate == "oldest")
    return _fitting(prompt_ids(tokenizer, prompt_format, messages[asked[-1]][1]), room)


def _chat_prompt(tokenizer, messages, last_question, room, may_drop):
    turns = [_encoded_turn(tokenizer, role, content) for role, content in messages]
    opening = _opening_ids(tokenizer)
    excess = sum(map(len, turns)) + len(opening) - room
    for i in range(last_question if may_drop else 0):
        if excess > 0 and messages[i][0] != "system":
            excess -= len(turns[i])
            turns[i] = []
    return _fitting([*(i for turn in turns for i in turn), *opening], room)


def _fitting(ids, room):
    if len(ids) > room:
        raise TooLong(len(ids), room)
    return ids


def spelled(role, content):
    """What of a turn is encoded in one. What the assistant says stands alone, as a model writes it:
    its role was opened before."""
    return content if role == "assistant" else f"{role}\n{content}"


def conversation_ids(tokenizer, roles, words):
    """A whole conversation, and what of it is learned: (ids as array("I"), spans), where ids from a
    span's first to before its last are what the assistant says in a turn, and that turn's end.

    words: for each turn the ids of what spelled() says. The ids up to a span are those of
    chat_ids() for the turns before it.
    """
    ids, spans = array("I"), []
    for role, said in zip(roles, words, strict=True):
        ids.extend(_line_break(tokenizer) if ids else ())
        ids.extend(_turn_ids(tokenizer, role, said))
        if role == "assistant":
            spans.append((len(ids) - len(said) - 1, len(ids)))
    return ids, spans


def _encoded_turn(tokenizer, role, content):
    """A turn with the line break that stands between turns."""
    said = tokenizer.encode(spelled(role, content))
    return [*_turn_ids(tokenizer, role, said), *_line_break(tokenizer)]


def _turn_ids(tokenizer, role, said):
    """<|im_start|>role, line break, content, <|im_end|>: ChatML. said: the ids of spelled()."""
    start, end = tokenizer.special["IM_START"], tokenizer.special["IM_END"]
    opening = _opening_ids(tokenizer) if role == "assistant" else [start]
    return [*opening, *said, end]


def _line_break(tokenizer):
    return tokenizer.encode("\n")


def _opening_ids(tokenizer):
    """What opens the assistant's turn."""
    return [tokenizer.special["IM_START"], *tokenizer.encode("assistant\n")]


def stop_ids(tokenizer):
    """Ids that end what a model writes."""
    return (tokenizer.eot, tokenizer.pad, tokenizer.special["IM_END"])
