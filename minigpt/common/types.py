"""Convert values of settings and of JSON files to the types of annotations.

coerce(8, float)                       # 8.0; ValueError for 8.5 as int
values, problems = typed(meta, dict(step=int, layout=Literal["pad", "split"]), "meta.json")
"""

import json
import math
import types
import typing


def type_name(kind):
    """The name of a type in errors and in --help."""
    if kind == list[str]:
        return "str[,str…], or the flag again"
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if isinstance(kind, types.UnionType):
        return " | ".join(type_name(part) for part in typing.get_args(kind))
    names = {type(None): "none", bool: "bool (true or false)", dict: "an object"}
    return names.get(kind, kind.__name__)


def coerce(value, kind):
    """`value` as the type `kind`, or ValueError. int → float is allowed; float → int and
    bool ↔ number are not. A str becomes a list by splitting at commas; empty parts are dropped."""
    if isinstance(kind, types.UnionType):
        for part in typing.get_args(kind):
            try:
                return coerce(value, part)
            except ValueError:
                pass
        raise ValueError
    if typing.get_origin(kind) is typing.Literal:
        if type(value) is bool:  # a recipe's True is the option "true"
            value = str(value).lower()
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
    annotation), and a line for each value of a wrong type, beginning with `where`. Names that are
    in only one of the two are ignored."""
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
