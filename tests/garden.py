"""Entries to be asked about, and what a model would say of them: for tests and benches of
sft/sft_generate.py. Each entry is about a place of its own, named by trees and flowers."""

import json
import random
import re

LETTERS = "松柏梅兰竹菊桃李杏梨枫柳杉桦榆槐桂莲荷葵椰棕杨樟榕茶麻藤棉葱姜蒜橘柚橙柿枣栗"
_L = f"[{LETTERS}]"
_TEXT = re.compile(rf"({_L}{{5}})在({_L}{{6}})。\1产({_L}{{6}})。({_L}{{3}})建了\1。")


def entry(i):
    """Entry i: {"id", "title", "text"}."""
    name, place, goods, person = (_word(f"{i} {part}", n) for part, n in enumerate((5, 6, 6, 3)))
    text = f"{name}在{place}。{name}产{goods}。{person}建了{name}。"
    return {"id": f"e{i}", "title": name, "text": text}


def _word(seed, n):
    return "".join(random.Random(seed).choices(LETTERS, k=n))


def write_entries(path, n):
    """Write entries 0 … n − 1, one a line; returns the path."""
    lines = [json.dumps(entry(i), ensure_ascii=False) + "\n" for i in range(n)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def title_in(messages):
    """The title of the entry that a conversation is about."""
    return _TEXT.search("".join(message["content"] for message in messages))[1]


def pairs_in(messages):
    """Three good pairs about the entry whose text is in the conversation."""
    text = "".join(message["content"] for message in messages)
    name, place, goods, person = _TEXT.search(text).groups()
    return [
        {"question": f"{name}在哪里？", "answer": f"{name}在{place}。"},
        {"question": f"{name}产什么？", "answer": f"{name}产{goods}。"},
        {"question": f"谁建了{name}？", "answer": f"{person}建了{name}。"},
    ]


def reply(messages):
    """These pairs as JSON text."""
    return json.dumps(pairs_in(messages), ensure_ascii=False)
