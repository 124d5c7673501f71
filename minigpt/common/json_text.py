"""Parse untrusted JSON, with a limit on its depth.

value = parse_json(line)        # ValueError: not JSON, or nested too deeply; never RecursionError

json.loads() accepts about a thousand levels. Such a value can overflow the stack later, when it is
written or copied. A hundred levels are always safe, and our records have fewer than ten.
"""

import json

MOST_DEPTH = 100  # levels of lists and objects


def parse_json(text):
    """The value of JSON `text` (str or bytes). ValueError if it is not JSON (mostly the subclass
    json.JSONDecodeError) or is nested more than MOST_DEPTH levels deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep") from None
    if _may_be_deep(text) and is_deep(value):
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    return value


def is_deep(value, most=MOST_DEPTH):
    """Whether a JSON value has more than `most` levels of lists and objects."""
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
    # Counting brackets is much faster than walking the value, and most texts have few.
    square, curly = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    return text.count(square) + text.count(curly) > MOST_DEPTH
