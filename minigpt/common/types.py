"""Values of settings and of JSON files as the types that an annotation names.

coerce(8, float)                       # 8.0; ValueError for 8.5 as int
values, problems = typed(meta, dict(step=int, layout=Literal["pad", "split"]), "meta.json")
"""

import json
import math
import types
import typing


def type_name(kind):
    """How an error or --help names a type."""
    if kind == list[str]:
        return "str[,str…], or the flag again"
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if isinstance(kind, types.UnionType):
        return " | ".join(type_name(part) for part in typing.get_args(kind))
    names = {type(None): "none", bool: "bool (true or false)", dict: "an object"}
    return names.get(kind, kind.__name__)


def coerce(value, kind):
    """`value` as `kind`, or ValueError. int → float yes; float → int, bool ↔ number no; a text is
    a list of its parts between commas, blanks around them and empty ones dropped."""
    if isinstance(kind, types.UnionType):
        for part in typing.get_args(kind):
            try:
                return coerce(value, part)
            except ValueError:
                pass
        raise ValueError
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError
    if kind is type(None) and value is None:
        return None
    if kind == list[str] and type(value) is list and all(type(part) is str for part in value):
        return value
    if kind == list[str] and type(value) is str:
        return [part.strip() for part in value.split(",") if part.strip()]
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    raise ValueError


def typed(values, kinds, where):
    """(values, problems): the `values` (name → value) of a JSON object, coerced to `kinds` (name →
    annotation), and a line for each that is of another kind. `where` begins the lines. A name that
    only one of the two has is passed over."""
    found, problems = dict(values), []
    for name, kind in kinds.items():
        if name not in values:
            continue
        try:
            found[name] = coerce(values[name], kind)
        except (ValueError, OverflowError):
            shown = json.dumps(values[name], ensure_ascii=False)
            shown = shown if len(shown) <= 60 else shown[:60] + "…"
            problems.append(f"{where}: {name}={shown}: expected {type_name(kind)}")
    return found, problems
