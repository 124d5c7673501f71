"""URLs and keys as people write them."""

import pytest

from minigpt.common import urls


@pytest.mark.parametrize(
    ("url", "root", "api"),
    [
        ("http://lab:5000", "", "/v1"),
        ("http://lab/llm/", "/llm", "/llm/v1"),
        ("https://a.example/openai/v1", "/openai", "/openai/v1"),
        ("http://gateway/v2/team/v1", "/v2/team", "/v2/team/v1"),
        ("https://a.example/v1beta/openai", "", "/v1beta/openai"),
        ("https://a.example/v1/chat/completions", "", "/v1"),
        ("http://lab:3000/api/chat/completions", "/api", "/api"),
        ("http://lab/chat/completions", "", ""),
    ],
)
def test_the_path_of_the_api_and_its_prefix(url, root, api):
    assert (urls.root_path(url), urls.api_path(url)) == (root, api)


@pytest.mark.parametrize(
    ("host", "local", "everywhere", "written"),
    [
        ("localhost", True, False, "localhost:80"),
        ("127.0.0.1", True, False, "127.0.0.1:80"),
        ("127.8.9.10", True, False, "127.8.9.10:80"),
        ("::1", True, False, "[::1]:80"),
        ("0.0.0.0", False, True, "0.0.0.0:80"),
        ("::", False, True, "[::]:80"),
        ("192.168.1.20", False, False, "192.168.1.20:80"),
        ("127.0.0.1.example.com", False, False, "127.0.0.1.example.com:80"),
        ("", False, False, ":80"),
    ],
)
def test_hosts(host, local, everywhere, written):
    found = urls.is_local(host), urls.is_everywhere(host), urls.address(host, 80)
    assert found == (local, everywhere, written)


@pytest.mark.parametrize("key", ["sk-abc", "a", "x" * 500])
def test_keys(key):
    assert urls.is_key(key)


@pytest.mark.parametrize("key", ["", "two words", "naïve", "line\nbreak", "密钥"])
def test_what_is_no_key(key):
    assert not urls.is_key(key)
