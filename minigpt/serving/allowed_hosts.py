"""Host allow-list: a defense against DNS rebinding, the same for both servers.

    hosts = AllowedHosts(["arena.example.org"], host="0.0.0.0")
    hosts.allows("localhost:5000")          # True

minigpt/arena/access/page_filter.py checks the arena's page, minigpt/serving/app.py the API.

In DNS rebinding a hostile web page has a DNS name that first resolves to the attacker's server and
then to the victim's machine. The browser sees one origin, so the page reads the local server's
answers. But the browser sends the hostile name in the Host header: a server that knows its own
names refuses it.

A Host that is an IP address is always allowed, whichever address it is. There is no name to rebind:
such a page was itself loaded from that address. So port forwarding, NAT, containers and overlay
networks work by address without a setting; a name needs --allowed_hosts.
"""

import ipaddress
import re
import socket

from minigpt.common.errors import UserError
from minigpt.common.report import one_line

_HOST_HEADER = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(:\d*)?")
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


class AllowedHosts:
    """The host names that a server accepts."""

    def __init__(self, names=(), host=None):
        """names: host names from --allowed_hosts; a port is ignored; "*" allows every name.
        host: the --host on which the server listens. UserError names each entry that is not a host.
        """
        self.all = "*" in names
        problems = [f"--allowed_hosts: {one_line(n)!r}: {_EXPECTED}" for n in names if _bad(n)]
        if problems:
            raise UserError("\n".join(problems))
        self.given = {_host_of(name) for name in names if name != "*"}  # set by the owner
        own = [*_machine_names(), *([host] if host else [])]
        self._names = self.given | {_host_of(name) for name in own} - {None}

    def allows(self, host_header):
        """Whether a request with this Host header may be answered. None and "" are a request
        without the header (HTTP/1.0), which no browser sends."""
        if self.all or not host_header:
            return True
        host = _host_of(host_header)
        if host is None:
            return False
        return _is_ip(host) or _is_localhost(host) or host in self._names

    def refusal(self, host_header):
        """One line for the sender of a Host that is not allowed."""
        sent = one_line(host_header, most=100)
        return (
            f"the Host header {sent!r} is not a name of this server; to allow it, "
            f"start the server with --allowed_hosts={_host_of(host_header) or 'NAME'}"
        )


_EXPECTED = "expected a host name such as arena.example.org, without http:// and path, or *"


def _bad(name):
    return name != "*" and _host_of(name) is None


def _host_of(header):
    """The host of a Host header in lower case, without port, brackets and trailing dot; None where
    the header is not a host."""
    match = _HOST_HEADER.fullmatch(header.strip())
    if not match:
        return None
    host = match[1].lower()
    if host.startswith("["):
        return host[1:-1] if _is_ip(host[1:-1]) else None
    try:
        host = host.removesuffix(".").encode("idna").decode()  # browsers send a name in this form
    except UnicodeError:
        return None
    return host if _NAME.fullmatch(host) else None


def _is_ip(host):
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_localhost(host):
    """Browsers resolve these names to this machine without asking DNS (RFC 6761)."""
    return host == "localhost" or host.endswith(".localhost")


def _machine_names():
    """This machine's host name, full and short, and its mDNS name."""
    name = socket.gethostname()
    short = name.partition(".")[0]
    return [name, short, f"{short}.local"]
