"""JSON from a file or a server, at most MOST_DEPTH levels deep.

value = parse_json(line)        # ValueError: no JSON, or nested too deeply; never RecursionError

json.loads() reads about a thousand levels, and a value that it could read may not fit the stack
where it is written or copied. A hundred levels always fit, and no record of ours has ten.
"""

import json

MOST_DEPTH = 100  # of nested lists and objects


def parse_json(text):
    """The value in JSON `text` (str or bytes). ValueError where it is no JSON (then mostly a
    json.JSONDecodeError), or is nested more than MOST_DEPTH levels deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep") from None
    if _may_be_deep(text) and is_deep(value):
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    return value


def is_deep(value, most=MOST_DEPTH):
    """Whether a value of JSON has more than `most` levels of lists and objects."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return bool(level)


def _may_be_deep(text):
    # Counting is many times faster than walking; most texts have few brackets.
    square, curly = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    return text.count(square) + text.count(curly) > MOST_DEPTH
