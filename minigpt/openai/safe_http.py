"""HTTP connections to checked addresses, for URLs that people enter.

    allowed = Allowed()                        # this machine and private networks
    connection = CheckedConnection("http", "lab-pc", 5000, allowed)
    connection.request("GET", "/v1/models")    # http.client's, to an address that was checked
    connection.abort()                         # from any thread: a read that blocks ends at once

A name is resolved once, and the connection is made to the address that was checked: DNS rebinding
changes nothing. No redirects; a proxy only where one is
named.
"""

import base64
import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
from urllib.parse import unquote, urlsplit

from minigpt.common.errors import UserError

DEFAULT = (
    *("127.0.0.0/8", "::1/128"),  # this machine
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # private networks
    "100.64.0.0/10",  # what carriers and overlay networks (Tailscale) give out
)
NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "::/128"),  # unspecified: some systems take it for this machine
        *(
            "169.254.0.0/16",
            "fe80::/10",
        ),  # link-local; most clouds' metadata are at 169.254.169.254
        *("224.0.0.0/4", "ff00::/8", "255.255.255.255/32"),  # multicast, broadcast
        "fd00:ec2::/32",  # Amazon's metadata and its neighbours
        *("fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128"),  # Google's and Oracle's
        *("100.100.100.200/32", "168.63.129.16/32"),  # Alibaba's and Azure's
    )
)
# IPv6 networks whose addresses embed an IPv4 address, and its distance in bits from the end:
# IPv4-mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056).
_EMBEDDING = (
    (ipaddress.ip_network("::ffff:0:0/96"), 0),
    (ipaddress.ip_network("64:ff9b::/96"), 0),
    (ipaddress.ip_network("2002::/16"), 80),
)


class Forbidden(UserError):
    """An address that must not be connected to."""


class UnknownHost(UserError):
    """A name that has no address."""


class ProxyError(OSError):
    """No connection through the proxy."""


class Allowed:
    """Networks that may be connected to. What is in NEVER is in none of them."""

    def __init__(self, networks=DEFAULT):
        """networks: strings such as "10.0.0.0/8" or "0.0.0.0/0". UserError names each wrong one."""
        self.networks, problems = [], []
        for network in networks:
            try:
                self.networks.append(ipaddress.ip_network(network.strip(), strict=False))
            except ValueError:
                problems.append(f"{network!r}: expected a network such as 10.0.0.0/8")
        if problems:
            raise UserError("\n".join(problems))

    def check(self, address):
        """Forbidden where no connection may be made to `address` (a string)."""
        plain = ipaddress.ip_address(address)
        forms = [plain, *_embedded(plain)]
        if any(form in network for form in forms for network in NEVER):
            raise Forbidden(
                f"{address} is link-local, a cloud's metadata, multicast or no machine: no network "
                "setting opens it"
            )
        meant = getattr(plain, "ipv4_mapped", None) or plain
        if not any(meant in network for network in self.networks):
            raise Forbidden(
                f"{address} is outside the networks that may be connected to "
                f"({', '.join(map(str, self.networks))}): allow its network if you trust it"
            )

    def resolve(self, host, port, seconds=5.0):
        """The checked addresses of `host`, in the system's order: [(family, address), …].

        Those of a name that may not be connected to are left out. Forbidden where none is left,
        UnknownHost where there is none, TimeoutError where the look-up takes longer than `seconds`.
        """
        found, refusals = [], []
        for family, address in _look_up(host, port, seconds):
            try:
                self.check(address)
                found.append((family, address))
            except Forbidden as error:
                refusals.append(str(error))
        if not found:
            raise Forbidden("; ".join(refusals))
        return found


class _Anywhere(Allowed):
    """Every address, for a server that its user has chosen."""

    def check(self, address):
        """Nothing is forbidden."""


ANYWHERE = _Anywhere()


def _embedded(address):
    """The IPv4 address that is embedded in an IPv6 one, if any."""
    return [
        ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF)
        for network, shift in _EMBEDDING
        if address in network
    ]


def _look_up(host, port, seconds):
    """[(family, address), …], each once. In a thread: a look-up cannot be interrupted, and lasts
    half a minute where the name server is silent."""
    answers = queue.SimpleQueue()

    def ask():
        try:
            answers.put((socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), None))
        except (OSError, UnicodeError) as error:
            answers.put(([], error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        entries, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"the look-up of {host} took more than {seconds:g} s") from None
    found = dict.fromkeys(
        (entry[0], entry[4][0])
        for entry in entries
        if entry[0] in (socket.AF_INET, socket.AF_INET6)
    )
    if not found:
        raise UnknownHost(f"{host} has no address ({error or 'none of IPv4 or IPv6'})")
    return list(found)


class CheckedConnection(http.client.HTTPConnection):
    """An http.client connection, made to a checked address and ended by abort() from any thread.

    The Host header and the TLS server name are the URL's. connect() raises what Allowed.resolve()
    raises, and OSError. idle_seconds: how long one read or write may wait.
    """

    def __init__(
        self,
        scheme,
        host,
        port,
        allowed,
        connect_seconds=5.0,
        idle_seconds=60.0,
        *,
        tls=None,
        proxy=None,
    ):
        """scheme: "http" or "https"; port: None for the scheme's own; tls: an ssl.SSLContext, None
        for the system's; proxy: http://host:port, where the connection goes through one."""
        self._tls = (tls or ssl.create_default_context()) if scheme == "https" else None
        self.default_port = 443 if self._tls else 80  # so that the Host header leaves it out
        super().__init__(host, port or self.default_port)  # or it looks for a port in "::1"
        self._proxy = urlsplit(proxy) if proxy else None
        if self._proxy and self._tls:
            self.set_tunnel(host, self.port, self._proxy_headers())
        self._allowed = allowed
        self._connect_seconds, self._idle_seconds = connect_seconds, idle_seconds
        self._lock = threading.Lock()
        self._handle = None  # the same socket by a handle that nobody else closes
        self._aborted = False

    def request_target(self, path):
        """(what request() takes for a path, further headers): a proxy gets the whole URL, unless
        it only passes a TLS connection on."""
        if self._proxy is None or self._tls:
            return path, {}
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == self.default_port else f":{self.port}"
        return f"http://{host}{port}{path}", self._proxy_headers()

    def _proxy_headers(self):
        if self._proxy.username is None:
            return {}
        user = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
        return {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

    def connect(self):
        """Look the host up, and connect to the first of its checked addresses that answers."""
        if self._proxy is None:
            return self._connect_to_host(self.host, self.port)
        try:
            self._connect_to_host(self._proxy.hostname or "", self._proxy.port or 80)
        except ssl.SSLError:
            raise
        except (OSError, UserError) as error:
            raise ProxyError(str(error) or type(error).__name__) from None

    def _connect_to_host(self, host, port):
        failure = None
        for family, address in self._allowed.resolve(host, port, self._connect_seconds):
            try:
                return self._connect_to(family, address, port)
            except OSError as error:
                failure = failure or error
        raise failure

    def _connect_to(self, family, address, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._hold(sock)
            sock.settimeout(self._connect_seconds)
            sock.connect((address, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._proxy and self._tls:
                self.sock = sock
                self._tunnel()  # http.client's: raises OSError where the proxy refuses
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_hostname=self.host)
            sock.settimeout(self._idle_seconds)
        except BaseException:
            self.sock = None
            sock.close()
            raise
        self.sock = sock

    def _hold(self, sock):
        with self._lock:
            if self._handle:
                self._handle.close()
            self._handle = sock.dup()
            if self._aborted:
                raise ConnectionAbortedError

    def abort(self):
        """End the connection, also while another thread connects, writes or reads. For good."""
        with self._lock:
            self._aborted = True
            if self._handle:
                with contextlib.suppress(OSError):  # not connected yet, or no longer
                    self._handle.shutdown(socket.SHUT_RDWR)

    def release(self):
        """Abort, and give the socket back to the system."""
        self.abort()
        self.close()
        with self._lock:
            if self._handle:
                self._handle.close()
                self._handle = None


def lan_address():
    """This machine's address in its network; "this-machine" where it has none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which way such a packet goes
        return probe.getsockname()[0]
    return "this-machine"
