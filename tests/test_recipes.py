"""The recipes: each resolves, says commands that exist, and fits the run that it starts from; and
the pairs about three novels that come with them."""

import ast
import json
import re

import pytest
import torch
from conftest import ROOT

from config import train_config
from config.configurator import configure
from minigpt.evaluation.examples import read_pairs
from minigpt.synthesis.dedup import Deduplicator
from model import GPT, GPTConfig

RECIPES = sorted(set((ROOT / "config").glob("*.py")) - {ROOT / "config/configurator.py"})
RECIPES = {path.stem: path for path in RECIPES if path.stem != "__init__"}
# What is changed by these follows another recipe on the command line.
AFTER_ANOTHER = {"bbc_upper"}
# Those of imported models alone are no settings.
FIELDS = [name for name in GPTConfig.__dataclass_fields__ if name in train_config.__annotations__]


def resolved(name):
    return configure(shared="all", argv=[str(RECIPES[name])], quiet=True)


def commands(text):
    """The `python SCRIPT …` lines of a text, each with what a backslash joins to it, as words."""
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    lines = [line.partition("#")[0].strip() for line in lines]
    return [line.split()[1:] for line in lines if line.startswith("python ")]


def knobs_of(script):
    """The names that a script's flags may have: its Settings' and, of train_config.py's, all."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = {
        statement.target.id
        for node in classes
        if node.name == "Settings"
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    return own | set(resolved("train_config").as_dict()) | {"help"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_and_its_commands_exist(name):
    settings = resolved(name)
    text = ast.get_docstring(ast.parse(RECIPES[name].read_text(encoding="utf-8")))
    found = commands(text)
    assert any(words[0] == "train.py" for words in found), "no command that trains"
    for script, *words in found:
        assert (ROOT / script).is_file(), script
        for word in words:
            if word.startswith("--"):
                assert word[2:].partition("=")[0] in knobs_of(script), f"{script} {word}"
            elif word.endswith(".py"):
                assert (ROOT / word).is_file(), word
    own = [words for words in found if f"config/{name}.py" in words]
    assert own, "no command with the recipe itself"
    assert settings.out_dir.startswith("out/") and settings.dataset.startswith("data/")


@pytest.mark.parametrize("name", sorted(set(RECIPES) - AFTER_ANOTHER))
def test_a_recipe_starts_from_another_or_has_a_possible_shape(name):
    settings = resolved(name)
    if settings.init_from == "scratch":
        shape = {field: getattr(settings, field) for field in FIELDS}
        assert GPTConfig(padded_vocab_size=64, **shape).problems() == []
        return
    bases = [base for base in RECIPES if resolved(base).out_dir == settings.init_from]
    assert len(bases) == 1, f"{settings.init_from} is made by {bases}"
    base = resolved(bases[0])
    assert (settings.block_size, settings.tokenizer) == (base.block_size, base.tokenizer)
    assert settings.dataset != base.dataset


def test_no_recipe_writes_into_another_ones_run():
    folders = [resolved(name).out_dir for name in RECIPES]
    assert len(set(folders)) == len(folders)


def test_minimind_is_a_26m_model():
    settings = resolved("minimind")
    with torch.device("meta"):
        model = GPT(GPTConfig(6400, **{field: getattr(settings, field) for field in FIELDS}))
    count = sum(weight.numel() for weight in {id(w): w for w in model.parameters()}.values())
    # Embedding, and per block: queries and output, keys and values, three of the MLP.
    n, hidden = 512, 64 * 22
    by_hand = 6400 * n + 8 * (2 * n * n + 2 * n * 128 + 3 * n * hidden)
    norms = 8 * (2 * n + 2 * 64) + n
    assert count == by_hand + norms
    assert 25e6 < count < 27e6


# -- the pairs about the novels --------------------------------------------------------------------

PAIRS = ROOT / "sft/novels_pairs.jsonl"
BOOKS = ("三国演义", "红楼梦", "西游记")


def test_the_novels_pairs_are_whole_and_different():
    pairs = read_pairs(str(PAIRS))
    assert len(pairs) >= 200
    doubles = Deduplicator()
    for pair in pairs:
        book, slash, topic = pair.id.partition("/")
        assert book in BOOKS and slash and topic, pair.id
        assert pair.question.endswith("？") and 20 <= len(pair.answer) <= 150, pair.question
        assert doubles.add(pair.question, pair.answer) is None, pair.question
    counts = [sum(pair.id.startswith(book) for pair in pairs) for book in BOOKS]
    assert min(counts) >= 60
    records = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert all(list(record) == ["question", "answer", "id"] for record in records)


def test_the_quotes_in_the_novels_pairs_are_in_the_novel(shared_data):
    def bare(text):
        return re.sub(r"[\W_]", "", text)

    novels = {
        book: bare((shared_data / "novels" / f"{book}.txt").read_text(encoding="utf-8"))
        for book in BOOKS
    }
    quotes = 0
    for pair in read_pairs(str(PAIRS)):
        for quote in re.findall(r"“([^”]+)”", pair.answer):
            assert bare(quote) in novels[pair.id.partition("/")[0]], f"{pair.question} {quote}"
            quotes += 1
    assert quotes > 50
