"""Preset prompts: what people's spreadsheets save is read, whatever its encoding."""

import pytest

from minigpt.common.errors import UserError
from minigpt.common.presets import PresetPrompt, prompts_for, prompts_for_any, read_prompts

LINES = "prompt,format\n黄河是中国第二长河，,plain\n章鱼有几颗心脏？,qa\n"
PROMPTS = [
    PresetPrompt("黄河是中国第二长河，", "plain", "plain"),
    PresetPrompt("章鱼有几颗心脏？", "qa", "qa"),
]


@pytest.fixture
def written(tmp_path):
    """written(content): a file that holds it, text as UTF-8."""

    def write(content):
        path = tmp_path / "examples.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_encodings(written, encoding, line_end):
    assert read_prompts(written(LINES.replace("\n", line_end).encode(encoding))) == PROMPTS


def test_each_once_in_their_order(written):
    path = written("format,prompt\nqa, 乙 \nqa,甲\nplain,乙\nqa,\nqa,   \nqa\n\n")
    assert read_prompts(path) == [("乙", "qa", "qa"), ("甲", "qa", "qa")]


def test_a_prompt_of_two_lines_with_commas(written):
    assert read_prompts(written('prompt\n"一,二\n三"\n')) == [("一,二\n三", "", "")]


def test_the_shipped_file(root):
    prompts = read_prompts(root / "examples.csv")
    assert len(prompts) > 3 and all(text.strip() and form for text, form, _ in prompts)


def test_no_file_gives_none(tmp_path):
    assert read_prompts(tmp_path / "nowhere.csv") == []
    assert read_prompts(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("question\n黄河？\n", "no column `prompt`"),
        ("", "no column `prompt`"),
        (b"prompt\n\xff\xff\xff\n", "neither UTF-8 nor GB18030"),
        ("prompt\n" + "长" * 200_000, "cannot be read"),
    ],
)
def test_what_cannot_be_read(written, content, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        read_prompts(written(content))
    assert "examples.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_prompts_suit_the_model():
    prompts = [PresetPrompt("接", "plain"), PresetPrompt("问", "qa"), PresetPrompt("都")]
    assert prompts_for(prompts, "plain") == ["接", "都"]
    assert prompts_for(prompts, "qa") == prompts_for(prompts, "chat") == ["问", "都"]
    assert prompts_for(prompts, None) == ["接", "问", "都"]
    assert prompts_for(prompts[:1], "qa") == ["接"]  # better than none


def test_prompts_for_models_of_a_name():
    prompts = [PresetPrompt("接", "plain"), PresetPrompt("问", "qa"), PresetPrompt("诗", "poems")]
    assert (
        prompts_for(prompts, "qa", "poems_sft") == prompts_for(prompts, "chat", "poems") == ["诗"]
    )
    assert prompts_for(prompts, None, "poems") == ["诗"]
    assert prompts_for(prompts, "plain", "poems") == ["接"]  # it cannot be asked
    assert prompts_for(prompts, "qa", "cpu_small_sft") == prompts_for(prompts, "qa") == ["问"]
    assert prompts_for(prompts, None) == ["接", "问"]


def test_groups_of_prompts(written):
    prompts = read_prompts(written("prompt,format\n甲,qa\n乙,plain\n甲,plain\n丙,\n丁\n"))
    assert prompts == [("甲", "qa", "qa"), ("乙", "plain", "plain"), ("丙", "", ""), ("丁", "", "")]
    prompts = read_prompts(written("format,group,prompt\nqa,历史,甲\nqa,诗,乙\n"))
    assert [prompt.group for prompt in prompts] == ["历史", "诗"]


def test_prompts_for_any_of_several_models():
    prompts = [PresetPrompt("接", "plain"), PresetPrompt("问", "qa"), PresetPrompt("诗", "poems")]
    assert prompts_for_any(prompts, [("qa", "poems"), ("qa", "poems_sft")]) == ["诗"]
    assert prompts_for_any(prompts, [("plain", "a"), ("qa", "poems")]) == ["接", "诗"]
    assert prompts_for_any(prompts, []) == prompts_for(prompts, None) == ["接", "问"]
