"""URLs and keys of servers as people write them: what is wrong with one, and what it stands for."""

import re
from contextlib import suppress
from urllib.parse import urlsplit

from minigpt.common.report import one_line

_URL = re.compile(
    r"https?://(\[[\w.:]+\]|[\w.-]+)(:\d+)?(/[\w~-][\w.~-]*)*/*", re.ASCII | re.IGNORECASE
)
_VERSION = re.compile(r"/v\d\w*(?=/|$)")  # a part of a path such as /v1 or /v1beta


def problem_of_url(url):
    """What is wrong with a server's URL, or None. What may be a secret in it is not shown."""
    if not re.match(r"https?://", url, re.IGNORECASE):
        return "expected http:// or https://"
    if "@" in url:
        return "a user name or password in the address is not sent; use api_key_env"
    if "?" in url or "#" in url:
        return "nothing may follow the path, no ? and no #"
    with suppress(ValueError):
        if _URL.fullmatch(url) and urlsplit(url).port != 0:
            return None
    return f"{one_line(url)}: no address"


def api_path(url):
    """The path under which a server's OpenAI API lies: that of its URL, with /v1 where no part of
    it is a version; without a last slash and without /chat/completions."""
    path = urlsplit(url).path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return path if _VERSION.search(path) else path + "/v1"


def root_path(url):
    """What stands before the API's version: where a server describes itself."""
    path = api_path(url)
    *_, version = _VERSION.finditer(path)
    return path[: version.start()]


def is_key(text):
    """Whether an API key can be sent in a header as it is."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def is_variable(name):
    """Whether an environment variable can have this name. A key that stands in its place mostly
    cannot be one."""
    return bool(re.fullmatch(r"[A-Z_]\w*", name, re.ASCII | re.IGNORECASE))


def is_local(host):
    """Whether a host is this machine by whatever name; "" is none."""
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d+){3}", host))


def is_everywhere(host):
    """Whether to listen there is to listen on all of the machine's addresses."""
    return host in ("0.0.0.0", "::")


def address(host, port):
    """host:port as a URL has it: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
