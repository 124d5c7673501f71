"""sample.py as a program: its stdout, its stderr, its exit codes."""

import os
import signal
import subprocess
import sys

import pytest
from tiny_run import ROOT, run_here, save_run, save_scripted_run


def sample(*words, lines=""):
    return run_here("sample.py", *words, lines=lines)


def test_a_question_alone_gives_the_answer_alone(tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河")
    code, out, err = sample(f"--out_dir={run}", "--start=几？", "--num_samples=2")
    assert (code, out) == (0, "黄河\n---\n黄河\n"), err
    assert err.count("[6 tokens, ") == 2 and "tokens/s]" in err and "note:" not in err


def test_generation_continues_past_the_block_and_prints_one_note(tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄", "plain", cycle=True)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("\ufeff长江。\n", encoding="utf-8")
    words = [f"--start=FILE:{prompt}", "--num_samples=2", "--max_new_tokens=31"]
    code, out, err = sample(f"--out_dir={run}", *words)
    # Ten characters of three tokens each; of the eleventh there is one byte, which is not shown.
    text = "长江。" + 10 * "黄" + "\n"
    assert (code, out) == (0, text + "---\n" + text), err
    assert err.count("outgrew the 32 tokens") == 1


def test_drafted_tokens_are_counted(tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", cycle=True)
    words = [f"--out_dir={run}", "--start=几？", "--max_new_tokens=24"]
    code, out, err = sample(*words, "--draft_tokens=5")
    assert (code, out) == (0, 4 * "黄河" + "\n"), err
    # Nine are written one by one, until three of them have occurred before; then six, six, three.
    assert ", 12 of 12 drafted tokens kept]" in err
    assert sample(*words)[:2] == (code, out)


def test_a_seed_gives_the_same_text_and_samples_differ(tmp_path, byte_tokenizer, tiny_model):
    run = save_run(
        tmp_path / "run", tiny_model(padded_vocab_size=320, block_size=32), byte_tokenizer
    )
    words = [
        f"--out_dir={run}",
        "--start=河",
        "--temperature=2",
        "--max_new_tokens=12",
        "--top_k=0",
    ]
    first, again, other, free, freer = (
        sample(*words, f"--seed={seed}", "--num_samples=2")[1] for seed in (1, 1, 5, "none", "none")
    )
    assert first == again != other and free != freer
    one, two = first.split("---\n")
    assert one != two and one.startswith("河") and two.startswith("河")


def test_a_model_that_ends_at_once_is_explained(tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "")
    code, out, err = sample(f"--out_dir={run}", "--start=几？")
    assert (code, out) == (0, "\n")
    assert err.count("note: the model ended at once") == 1 and "troubleshooting.md" in err
    # No note if the user asks for no token, or if there is one.
    assert (
        "ended at once" not in sample(f"--out_dir={run}", "--start=几？", "--max_new_tokens=0")[2]
    )


def test_lines_from_a_pipe_are_answered_until_an_empty_one(tmp_path, byte_tokenizer):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河")
    code, out, err = sample(f"--out_dir={run}", lines="几？\n谁？\n\n不再问？\n")
    assert (code, out) == (0, "黄河\n黄河\n"), err
    assert sample(f"--out_dir={run}", lines="几？")[:2] == (0, "黄河\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_stops_the_answer_and_bad_bytes_are_no_traceback(tmp_path, byte_tokenizer):
    """One process, for speed: Ctrl-C twice, then a line that is not UTF-8."""
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", cycle=True)
    process = subprocess.Popen(
        [sys.executable, ROOT / "sample.py", f"--out_dir={run}", "--max_new_tokens=1000000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
    )
    try:
        for _ in range(2):
            process.stdin.write("几？\n".encode())
            process.stdin.flush()
            assert process.stdout.read(60).decode() == 10 * "黄河"  # while it generates more
            process.send_signal(signal.SIGINT)
            assert set(process.stdout.readline()) <= set("黄河\n".encode())
        out, err = process.communicate("黄河发源于哪里？\n".encode("gb18030"), timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (2, b""), err
    assert err.count(b"[stopped]") == 2
    assert b"the input is not utf-8" in err and b"Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out_dir=nowhere"], "nowhere: no trained run here"),
        (["--num_samples=0"], "num_samples=0: expected at least 1"),
        (["--draft_tokens=-1"], "draft_tokens=-1: expected at least 0"),
        (["--draft_tokens=4", "--num_beams=2"], "draft_tokens=4: beam search (num_beams=2) reads"),
        (
            ["--top_p=2", "--temperature=-1"],
            "temperature=-1.0: expected 0 (greedy) or more\ntop_p=2.0",
        ),
        (["--start=FILE:nowhere.txt"], "--start=FILE:nowhere.txt: cannot be read"),
        (["--topk=3"], "--topk: unknown key topk; did you mean top_k?"),
    ],
)
def test_mistakes(words, message):
    code, out, err = sample("--start=问", *words)
    assert (code, out) == (2, "") and message in err


def test_a_prompt_file_that_holds_nothing_is_named(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(b"\n")
    assert "the file is empty" in sample(f"--start=FILE:{prompt}")[2]
    prompt.write_bytes("黄河".encode("gb18030"))
    assert "cannot be read (it is not UTF-8)" in sample(f"--start=FILE:{prompt}")[2]
