"""URLs and API keys of servers, as users write them: validation, and the path of the API."""

import re
from contextlib import suppress
from urllib.parse import urlsplit

from minigpt.common.report import one_line

_URL = re.compile(
    r"https?://(\[[\w.:]+\]|[\w.-]+)(:\d+)?(/[\w~-][\w.~-]*)*/*", re.ASCII | re.IGNORECASE
)
_VERSION = re.compile(r"/v\d\w*(?=/|$)")  # a part of a path such as /v1 or /v1beta


def problem_of_url(url):
    """What is wrong with a server's URL, or None. Parts that may be secret are not shown."""
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


def with_scheme(url):
    """An address as people type it, such as 192.168.1.20:5000, as a URL: http:// if it has no
    scheme."""
    return url if "://" in url else f"http://{url}"


def api_path(url):
    """The path of a server's OpenAI API: the path of its URL without a last slash. A full address
    is taken as it is, without its /chat/completions. To any other one /v1 is added if no part of
    the path is a version."""
    path = urlsplit(url).path.rstrip("/")
    api = path.removesuffix("/chat/completions").rstrip("/")
    return api if api != path or _VERSION.search(path) else path + "/v1"


def root_path(url):
    """The part of the path before the API's version, where a server describes itself."""
    path = api_path(url)
    starts = [version.start() for version in _VERSION.finditer(path)]
    return path[: starts[-1]] if starts else path


def is_key(text):
    """Whether a text can be sent as an API key in a header."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def is_variable(name):
    """Whether an environment variable can have this name. An API key given by mistake mostly
    cannot."""
    return bool(re.fullmatch(r"[A-Z_]\w*", name, re.ASCII | re.IGNORECASE))


def is_local(host):
    """Whether a host name or address is this machine; "" is not."""
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d+){3}", host))


def is_everywhere(host):
    """Whether listening on this host means all addresses of the machine."""
    return host in ("0.0.0.0", "::")


def address(host, port):
    """host:port as in a URL, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
