"""Passwords and keys from flags, variables and files; and sample_gradio.py with its doors."""

import base64
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from tiny_run import save_scripted_run

from config.configurator import configure
from minigpt.common.credentials import read_secret
from minigpt.common.errors import UserError

PATIENCE = 120  # seconds: Gradio starts slowly on a busy machine


class Knobs:
    password: str = ""
    password_file: str | None = None


def secret(monkeypatch, *words, variable=None):
    if variable is None:
        monkeypatch.delenv("MINIGPT_TEST", raising=False)
    else:
        monkeypatch.setenv("MINIGPT_TEST", variable)
    settings = configure(Knobs, argv=[*words], quiet=True)
    return read_secret(settings, "password", "MINIGPT_TEST")


def test_the_sources_of_a_secret(monkeypatch, tmp_path):
    path = tmp_path / "password"
    path.write_text("\ufeff from a file \r\n", encoding="utf-8")
    assert secret(monkeypatch) is None
    assert secret(monkeypatch, variable="") is None
    assert secret(monkeypatch, variable="a b") == "a b"
    assert secret(monkeypatch, "--password=flag", variable="b") == "flag"
    assert secret(monkeypatch, f"--password_file={path}", variable="b") == "from a file"


def test_a_secret_that_cannot_be_read(monkeypatch, tmp_path):
    empty, two, binary = (tmp_path / name for name in ("empty", "two", "binary"))
    empty.write_text(" \n")
    two.write_text("one\ntwo\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, what in (
        (empty, "is empty"),
        (two, "one line"),
        (binary, "cannot be read"),
        (tmp_path / "absent", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UserError, match=what) as caught:
            secret(monkeypatch, f"--password_file={path}", variable="b")
        assert "--password_file=" in str(caught.value) and "two" not in str(caught.value)[-40:]
    with pytest.raises(UserError, match="give one of them"):
        secret(monkeypatch, "--password=a", f"--password_file={two}")
    with pytest.raises(UserError, match="the variable MINIGPT_TEST: expected one line"):
        secret(monkeypatch, variable="a\nb")


# -- the page --------------------------------------------------------------------------------------


@contextlib.contextmanager
def page(folder, *words, **environment):
    """(process, port) of a sample_gradio.py that runs in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sample_gradio.py"), f"--port={port}", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={**os.environ, **environment},
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def get(port, path="/", host="localhost", auth=""):
    """The answer's (status, text)."""
    headers = {"Host": host}
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def until_up(process, port):
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        time.sleep(0.2)
    raise AssertionError(process.stdout.read())


def test_the_page_keeps_its_doors_and_ends_by_a_signal(tmp_path, byte_tokenizer):
    pytest.importorskip("gradio")
    save_scripted_run(tmp_path / "out" / "north", byte_tokenizer, "北京。")
    (tmp_path / "admin").write_text("only in a file\n")
    words = ["--allowed_hosts=arena.example", "--admin_password_file=admin"]
    with page(tmp_path, *words, MINIGPT_AUTH="class:s:e cret") as (process, port):
        until_up(process, port)
        assert get(port)[0] == 401 and get(port, auth="class:no")[0] == 401
        status, text = get(port, auth="class:s:e cret")
        assert status == 200 and "admin-password" in text
        assert get(port, host="arena.example", auth="class:s:e cret")[0] == 200
        status, text = get(port, host="evil.example", auth="class:s:e cret")
        assert status == 403 and "--allowed_hosts=evil.example" in text
        assert get(port, "/download/battles.jsonl", host="evil.example")[0] == 403
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as stream:
            word = base64.b64encode(b"class:s:e cret").decode()
            stream.sendall(
                b"GET /gradio_api/heartbeat/abcdef HTTP/1.1\r\nHost: localhost\r\n"
                b"Authorization: Basic %s\r\n\r\n" % word.encode()
            )
            assert b"200 OK" in stream.recv(1000)
            process.send_signal(signal.SIGTERM)
            text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "Traceback" not in text and "WARNING" not in text
    assert "cret" not in text and "only in a file" not in text


def test_a_password_without_a_name(monkeypatch):
    sample_gradio = pytest.importorskip("sample_gradio")
    monkeypatch.setenv("MINIGPT_AUTH", "secret")
    settings = configure(sample_gradio.Settings, shared="device dtype", argv=[], quiet=True)
    sample_gradio.read_secrets(settings)
    with pytest.raises(UserError, match=r"MINIGPT_AUTH.*expected NAME:PASSWORD") as caught:
        sample_gradio.check(settings)
    assert "secret" not in str(caught.value)
