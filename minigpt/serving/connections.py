"""Connection limits and timeouts, shared by the WSGI and the ASGI server.

    limits = connection_limits(busy=100)
    connections = Connections(limits)
    for other in connections.admit(connection, "10.0.0.7"):
        other.end()                                  # the new one itself if there is no room
    for other in connections.overdue(now):           # about once a second
        other.end()

A connection with a running request is never closed here: streams may be long, and clients slow. A
connection that waits for its client (the rest of a request, or the next one) is closed after a
timeout, or when room is needed: then the one with the longest wait is closed first. So a client
that sends its request at once is answered, however many idle connections others hold.
"""

import contextlib
import ipaddress
from dataclasses import dataclass, replace
from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None

FILES_WANTED = 8192  # file descriptors, if the system allows so many
FILES_RESERVED = 400  # for models, ledger and connections to other servers


@dataclass(frozen=True)
class ConnectionLimits:
    """The number of connections, and the timeouts in seconds.

    One address may be a whole class behind a router or a proxy: thirty browsers open up to 180.
    """

    total: int = 1000
    per_address: int = 750
    waiting_per_address: int = 128  # without a complete request; a further one closes the oldest
    head_seconds: float = 10.0  # from the first byte, or the connection, to the end of the head
    body_seconds: float = 30.0  # between two bytes of an incomplete body
    idle_seconds: float = 120.0  # between two requests
    reader_seconds: float = 600.0  # a client that reads no byte of a finished response


class Waiting(NamedTuple):
    """What a connection waits for: "head" or "body" (the rest of a request), "idle" (the next
    request) or "reader" (the client does not read a finished response); and since when, on the
    clock of Connections.overdue()."""

    what: str
    since: float


def connection_limits(busy):
    """ConnectionLimits for a server that answers up to `busy` requests at once, within the limit
    of open files, which is raised if the system allows it."""
    limits = ConnectionLimits(total=busy + 500, per_address=busy + 250)
    files = _raise_file_limit()
    if files is None:
        return limits
    return fit(limits, files)


def fit(limits, files):
    """The limits reduced to fit `files` open files."""
    total = min(limits.total, files - min(FILES_RESERVED, files // 2))
    return replace(
        limits,
        total=total,
        per_address=min(limits.per_address, total * 3 // 4),
        waiting_per_address=min(limits.waiting_per_address, total // 2),
    )


def _raise_file_limit():
    """Raise the limit of open files and return it; None if there is no limit."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= FILES_WANTED:
        return None if soft == unlimited else soft
    wanted = FILES_WANTED if hard == unlimited else min(hard, FILES_WANTED)
    with contextlib.suppress(OSError, ValueError):  # the system has a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


class Connections:
    """The open connections of a server. Not thread-safe: for the thread of the event loop.

    A connection has waiting() → Waiting, or None while a request is being answered, and end(),
    which closes it at once or soon. Its server calls remove() when it is closed.
    """

    def __init__(self, limits):
        self.limits = limits
        self._network = {}  # connection → network of its client
        self._peers = {}  # network → {connection: None}, a set in the order of opening

    def admit(self, connection, address):
        """Add a new connection. Returns the connections to close so that the limits hold (already
        removed): one that waits, or the new one itself if none waits."""
        network = network_of(address)
        peers = self._peers.get(network, ())
        waiting = _longest_first(peers)
        ended = []
        if len(waiting) >= self.limits.waiting_per_address or len(peers) >= self.limits.per_address:
            ended = waiting[:1] or [connection]
        elif len(self._network) >= self.limits.total:
            every = map(_longest_first, self._peers.values())
            ended = max(every, key=len)[:1] or [
                connection
            ]  # of the address with the most waiting ones
        for other in ended:
            self.remove(other)
        if connection not in ended:
            self._network[connection] = network
            self._peers.setdefault(network, {})[connection] = None
        return ended

    def remove(self, connection):
        """Remove a connection; no effect if it is unknown."""
        network = self._network.pop(connection, None)
        if network is not None:
            del self._peers[network][connection]
            if not self._peers[network]:
                del self._peers[network]

    def overdue(self, now):
        """The connections that have waited too long at the time `now`."""
        seconds = dict(
            head=self.limits.head_seconds,
            body=self.limits.body_seconds,
            idle=self.limits.idle_seconds,
            reader=self.limits.reader_seconds,
        )
        late = []
        for connection in self._network:
            waiting = connection.waiting()
            if waiting and now - waiting.since > seconds[waiting.what]:
                late.append(connection)
        return late


def _longest_first(connections):
    """The connections that wait for a request, the longest wait first."""
    waits = [(connection, connection.waiting()) for connection in connections]
    waits = [(c, w.since) for c, w in waits if w and w.what != "reader"]
    return [connection for connection, _ in sorted(waits, key=lambda wait: wait[1])]


def network_of(address):
    """The network that counts as one client: an IPv4 address, or the /64 network of an IPv6
    address, because one machine may use all of it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False)
