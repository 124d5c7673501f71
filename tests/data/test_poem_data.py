"""Poems: their records, and data/prepare_poems.py from files to a dataset, as a user runs it."""

import json

import pytest
from tiny_run import run_here, write_jsonl

from minigpt.data.formats import FORMATS, recognize
from minigpt.data.readers.files import find_files
from minigpt.data.shapes.instructions import KINDS, rhyme_pair
from minigpt.data.shapes.poems import Poem, lines_of, measure_of, parse_poem, parse_verse
from minigpt.data.shapes.samples import BadRecord, Entry, LeftOut
from minigpt.tokenizer.tokenizer import load_tokenizer

NIGHT = {
    "author": "李白",
    "paragraphs": ["床前明月光，疑是地上霜。", "舉頭望明月，低頭思故鄉。"],
    "title": "靜夜思",
    "id": "u1",
}
SIMPLIFIED = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
HOLE = {"author": "孟郊", "paragraphs": ["感感無緒蕩，愁愁作□邊。"], "title": "缺"}
HEADS = "天地玄黄宇宙洪荒日盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽"


def poem_of(n):
    """Poem n of a made collection: four lines of five."""
    lines = [HEADS[(n + i * 7) % len(HEADS)] + "春山明月"[i:] + "春山明月"[:i] for i in range(4)]
    return f"{lines[0]}，{lines[1]}。\n{lines[2]}，{lines[3]}。"


@pytest.fixture
def collection(tmp_path):
    """The folder 全唐诗 as of chinese-poetry: poems, and other files that are none of them."""
    folder = tmp_path / "全唐诗"
    folder.mkdir()
    made = [
        {"author": "李白", "title": f"题{HEADS[n]}", "paragraphs": poem_of(n).split("\n")}
        for n in range(len(HEADS))
    ]
    for name, records in {"0": [NIGHT, HOLE, NIGHT], "1000": made}.items():
        text = json.dumps(records, ensure_ascii=False, indent=2)
        (folder / f"poet.tang.{name}.json").write_text(text, encoding="utf-8")
    (folder / "authors.tang.json").write_text('[{"name": "李白", "desc": "詩人"}]', "utf-8")
    (folder / "README.md").write_text("# 全唐诗\n", encoding="utf-8")
    songs = tmp_path / "宋词"
    songs.mkdir()
    song = {"author": "石", "paragraphs": ["春山明月。", "花落花开风又起。"], "rhythmic": "玉楼春"}
    text = json.dumps([song], ensure_ascii=False)
    (songs / "ci.song.0.json").write_text(text, encoding="utf-8")
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepare(*words):
    code, out, err = run_here("data/prepare_poems.py", *words)
    assert code == 0, err
    return out, err


# -- records ---------------------------------------------------------------------------------------


def test_a_poem_keeps_its_lines():
    assert recognize(NIGHT) is FORMATS["poem"]
    entry = parse_poem(NIGHT)
    assert entry == Entry("u1", "靜夜思", "\n".join(NIGHT["paragraphs"]))
    assert (
        parse_poem({"rhythmic": "漁家傲", "author": "范", "paragraphs": ["甲。"]}).title == "漁家傲"
    )
    with pytest.raises(LeftOut, match="lost characters"):
        parse_poem(HOLE)
    with pytest.raises(LeftOut, match="empty"):
        parse_poem({"author": "李白", "paragraphs": []})
    with pytest.raises(BadRecord, match="expected a list"):
        parse_poem({"author": "李白", "paragraphs": 7})
    with pytest.raises(BadRecord, match="expected a list of texts"):
        parse_poem({"author": "李白", "paragraphs": [7]})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[搏]鷙有餘飽，魯山長飢空。", "搏鷙有餘飽，魯山長飢空。"),
        ("山中（一作山間）人，「此」。", "山中人，此。"),
        ("床前明月光， 疑是\u3000地上霜。", "床前明月光，疑是地上霜。"),
        ("童子解吟《长恨曲》，胡儿。", "童子解吟长恨曲，胡儿。"),
    ],
)
def test_notes_and_quotation_marks_are_left_out(text, found):
    assert parse_verse({"author": "孟郊", "paragraphs": [text]}) == Poem(None, "", "孟郊", found)
    assert parse_verse({"text": text}).text == found


@pytest.mark.parametrize("text", ["枝上有□猨。", "枝上有●猨。", "（缺）", "枝上有X猨。", "<br>枝"])
def test_a_poem_that_is_not_whole_is_left_out(text):
    with pytest.raises(LeftOut):
        parse_verse({"author": "孟郊", "paragraphs": [text]})


def test_lines_and_their_measure():
    assert measure_of(lines_of(SIMPLIFIED)) == (4, 5)
    assert measure_of(lines_of("床前，明月光。")) is None
    assert lines_of("") == [] and measure_of([]) is None and measure_of(["abcde"]) is None


def test_data_prepare_reads_the_files_as_they_are(tmp_path, collection):
    paths = f"--input={collection}/poet.tang.0.json,{collection}/poet.tang.1000.json"
    code, out, err = run_here(
        "data/prepare.py", paths, f"--dataset={tmp_path / 'd'}", "--block_size=64", "--workers=1"
    )
    assert code == 0, err
    assert "dropped: poem with lost characters (□) 1" in out
    assert "recognized: poem (paragraphs, author, title) in 45" in out
    assert all("\n" in entry["text"] for entry in read(tmp_path / "d" / "val.jsonl"))


def test_a_star_names_files(collection):
    names = [path.name for path in find_files(f"{collection}/poet.*.json")]
    assert names == ["poet.tang.0.json", "poet.tang.1000.json"]


def test_the_folders_of_a_clone_are_read_and_what_is_no_poem_is_counted(tmp_path, collection):
    """全唐诗 has records of authors beside the poems; of a song (词) the tune is the title."""
    simple = collection / "poet.tang.0.simplified.json"  # some clones have both scripts
    simple.write_text(
        json.dumps([NIGHT | {"paragraphs": SIMPLIFIED.split("\n")}], ensure_ascii=False), "utf-8"
    )
    words = [f"--input={collection},{collection.parent / '宋词'}", "--simplify=true"]
    out, err = prepare(*words, "--test_fraction=0.2", f"--output={tmp_path / 'p'}")
    assert "read 46 poems = kept 44 + duplicates 2" in out
    assert "record of an author 1" in err and "lost characters (□) 1" in err
    poems, test = (read(tmp_path / "p" / f"{name}.jsonl") for name in ("poems", "test"))
    titles = {poem["text"]: poem["title"] for poem in poems}
    assert titles.get("春山明月。\n花落花开风又起。", "玉楼春") == "玉楼春"
    assert not {pair["id"] for pair in test} & set(titles)


def test_which_characters_rhyme_is_asked_of_poems_that_do():
    def asked(*couplets):
        return rhyme_pair(Poem(None, "", "", "\n".join(couplets)))

    pair = asked("春风吹晓水，玉树满山烟。", "江上花如雪，楼前月在天。", "春风吹晓水，玉树满山边。")
    assert (pair["question"], pair["answer"]) == ("哪些字和“烟”押韵？", "天，边。")
    assert pair["id"].startswith("春风吹晓水") and pair["kind"] == "rhymes"
    line = "春风吹晓水，玉树满山"
    assert asked(f"{line}烟。", f"{line}花。") is None  # they do not rhyme
    assert asked(f"{line}烟。", f"{line}烟。") is None  # a repeated character is no rhyme
    assert asked(f"{line}烟。", "楼前月在天。") is None  # three lines
    assert asked(f"{line}烟。", "江上雪，楼前月在天。") is None  # of unlike length
    assert asked(f"{line}烟。") is None


# -- the script ------------------------------------------------------------------------------------


def test_from_the_collection_to_instructions(tmp_path, collection):
    words = [f"--input={collection}/poet.tang.*.json", "--simplify=true", "--pairs=6"]
    words += ["--author_poems=20", "--test_fraction=0.2", f"--output={tmp_path / 'p'}"]
    out, err = prepare(*words)
    assert "read 44 poems = kept 43 + duplicates 1" in out
    assert "lost characters (□) 1" in err
    poems, pairs, test = (read(tmp_path / "p" / f"{n}.jsonl") for n in ("poems", "pairs", "test"))
    texts = {poem["text"] for poem in poems}
    assert len(texts) == len(poems)
    assert {pair["id"] for pair in pairs} == texts
    assert not {pair["id"] for pair in test} & texts
    assert len(texts | {pair["id"] for pair in test}) == 43
    # No collection has a theme for every poem, and one that has another author has no style.
    rhymes = read(tmp_path / "p" / "rhymes.jsonl")
    assert {pair["id"] for pair in rhymes} <= texts
    assert all(pair["kind"] == "rhymes" for pair in rhymes)
    assert SIMPLIFIED not in texts or any(pair["answer"] == "乡。" for pair in rhymes)
    made = {pair["kind"]: pair for pair in [*pairs, *test] if pair["id"] == SIMPLIFIED}
    assert set(made) == set(KINDS) - {"style"} or set(made) == set(KINDS)
    assert "《静夜思》" in made["title"]["question"] and "五言绝句" in made["title"]["question"]
    assert made["heads"]["heads"] == "床疑举低" and made["heads"]["question"].endswith("床疑举低")
    assert made["first"]["given"] + made["first"]["answer"] == SIMPLIFIED
    assert made["next"]["answer"] in ("疑是地上霜。", "低头思故乡。")
    assert all(made[kind]["lines"] == 4 for kind in ("title", "heads", "first"))
    assert any("李白的风格" in pair["question"] for pair in pairs)
    themes = {pair["question"] for pair in pairs if pair["kind"] == "form"}
    assert any("“春山”" in question for question in themes)


def test_the_same_poems_are_held_out_of_both_datasets(tmp_path, collection):
    prepare(f"--input={collection}/poet.tang.1000.json", f"--output={tmp_path / 'p'}", "--pairs=3")
    held_out = []
    for script, name in [("data/prepare.py", "poems"), ("data/prepare_sft.py", "pairs")]:
        words = [f"--input={tmp_path}/p/{name}.jsonl", f"--dataset={tmp_path / name}"]
        code, _, err = run_here(
            script, *words, "--val_fraction=0.2", "--block_size=128", "--workers=1"
        )
        assert code == 0, err
        held_out.append(read(tmp_path / name / "val.jsonl"))
    texts, pairs = held_out
    assert {entry["text"] for entry in texts} == {pair["id"] for pair in pairs}


def test_few_poems_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "one.jsonl", [{"author": "李白", "text": SIMPLIFIED}])
    code, _, err = run_here(
        "data/prepare_poems.py", f"--input={path}", f"--output={tmp_path / 'p'}"
    )
    assert code == 2 and "1 poems make" in err and "--test_fraction" in err


def test_without_opencc_one_line_says_what_to_install(tmp_path, collection, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opencc", None)
    words = [f"--input={collection}/poet.tang.0.json", "--simplify=true"]
    code, _, err = run_here("data/prepare_poems.py", *words, f"--output={tmp_path / 'p'}")
    assert code == 2 and "pip install opencc" in err and "Traceback" not in err


def test_a_vocabulary_of_characters(tmp_path):
    texts = [{"text": poem_of(n)} for n in range(20)]
    words = [f"--input={write_jsonl(tmp_path / 'texts.jsonl', texts)}", "--vocab_size=400"]
    words += ["--min_frequency=1", "--val_fraction=0", f"--output={tmp_path / 'v'}"]
    for characters, longest in [("true", 1), ("false", 5)]:
        code, _, err = run_here("data/train_tokenizer.py", *words, f"--characters={characters}")
        assert code == 0, err
        tokenizer = load_tokenizer(tmp_path / "v.tiktoken")
        lengths = [len(tokenizer.decode([i])) for i in tokenizer.encode(texts[0]["text"])]
        assert max(lengths) >= 2 if longest > 1 else set(lengths) == {1}
