"""Servers as people name them: an address, and the environment variable or the file that holds its
key or keys.

servers = read_servers(["localhost:1234", "https://api.example.com/v1"], ["none", "SOME_KEY"])
servers = read_servers(["https://api.example.com/v1"], key_file="keys.txt")     # one for each key
"""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from minigpt.common.errors import UserError
from minigpt.common.urls import api_path, is_key, is_local, is_variable, problem_of_url


@dataclass(frozen=True)
class Server:
    """An address and, if it wants one, its key, which nothing shows.

    base_url: as people write it. http:// may be left out for this machine alone; /v1 is added where
    no part of the path is a version; a full address, …/chat/completions, is taken as it is.
    UserError where it is no address.
    """

    base_url: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self):
        problem = problem_of_url(_with_scheme(self.base_url))
        if problem:
            raise UserError(f"base_url: {problem}; expected one such as http://localhost:1234/v1")
        if self.key is not None and not is_key(self.key):
            raise UserError(f"{self.name}: its key has a space in it, or is no ASCII")

    @property
    def name(self):
        """The address of its API."""
        url = _with_scheme(self.base_url)
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc}{api_path(url)}"


def read_servers(base_urls, api_key_env=(), key_file=""):
    """Servers with the keys that environment variables or a file hold.

    api_key_env: names of variables, none at all, one for all servers, or one for each ("none" where
    one needs no key). key_file: a file of keys for one address, a key a line, empty lines and those
    that begin with # apart. UserError with every mistake, a line each; it shows no key.
    """
    if key_file:
        if api_key_env or len(base_urls) != 1:
            raise UserError(
                f"api_key_file={key_file}: expected one base_url, and no api_key_env beside it"
            )
        return [Server(base_urls[0], key) for key in _read_keys(key_file)]
    names = [None if name.lower() == "none" else name for name in api_key_env]
    names = names * len(base_urls) if len(names) == 1 else names or [None] * len(base_urls)
    problems, servers = [], []
    if not base_urls:
        problems.append("base_url: expected at least one, such as http://localhost:1234/v1")
    if len(names) != len(base_urls):
        problems.append(
            f"api_key_env: {len(names)} names for {len(base_urls)} servers; expected none, one for "
            "all, or one for each (none where a server needs no key)"
        )
        names = [None] * len(base_urls)
    for url, name in zip(base_urls, names, strict=True):
        try:
            servers.append(Server(url, name and _key_in(name)))
        except UserError as error:
            problems += [str(error)] * (str(error) not in problems)
    # One address with several keys is several servers.
    doubled = Counter((server.name, server.key) for server in servers)
    twice = [name for (name, _), n in doubled.items() if n > 1]
    problems += [f"base_url: {name} is given twice" for name in twice]
    if problems:
        raise UserError("\n".join(problems))
    return servers


def _read_keys(path):
    """The keys in a file, in its order."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"api_key_file={path}: cannot be read ({why})") from None
    problems, keys = [], {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if not is_key(line):
            problems.append(f"{path}, line {number}: no key (a space, or no ASCII)")
        elif line in keys:
            problems.append(f"{path}, line {number}: the same key as in line {keys[line]}")
        else:
            keys[line] = number
    if not keys and not problems:
        problems.append(f"{path}: no key in it; expected a key a line")
    if problems:
        raise UserError("\n".join(problems))
    return list(keys)


def _key_in(name):
    if not is_variable(name):
        # It is not shown: it may be a key.
        raise UserError("api_key_env: expected NAMES of environment variables, not the keys")
    key = os.environ.get(name, "").strip()
    if not is_key(key):
        how = "holds no key (a space, or no ASCII)" if key else "is not set"
        raise UserError(f"api_key_env: the environment variable {name} {how}")
    return key


def _with_scheme(url):
    """`localhost:1234` is this machine. Another is not guessed: a key shall not travel unencrypted
    only because nobody wrote https."""
    url = url.strip()
    with suppress(ValueError):
        if "://" not in url and is_local(urlsplit(f"http://{url}").hostname or ""):
            return f"http://{url}"
    return url
