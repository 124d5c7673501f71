"""Prompt formats: how what a person asks becomes the ids that a model continues.

A checkpoint records its format, so nothing guesses: "plain" continues the text as it is, "qa"
puts the answer mark after a question.
"""

FORMATS = ("plain", "qa")


def prompt_ids(tokenizer, prompt_format, text):
    """The ids to continue for a person's `text`."""
    ids = tokenizer.encode(text)
    return [*ids, tokenizer.answer_mark] if prompt_format == "qa" else ids


def stop_ids(tokenizer):
    """Ids that end what a model writes."""
    return (tokenizer.eot, tokenizer.pad)
