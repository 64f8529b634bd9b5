"""The name and port of a server, as the headers Host and Origin write them: read strictly, because access depends on
them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

#: RFC 3986, section 3.2, without user information: a registered name, or an IP address of version 6 in brackets, whose
#: zone (RFC 6874) may follow it; then a port. An empty port is allowed there, but no client sends it.
_AUTHORITY = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]{2,45}(?:%[\w.~-]{1,40})?)\]|(?P<name>[\w.~!$&'()*+,;=%-]{1,255}))"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
#: RFC 6454, section 6.2: a scheme and an authority, and nothing else.
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://(?P<authority>.+)", re.ASCII)


class Authority(NamedTuple):
    """A server: `name` in lower case, an IPv6 address without its brackets, and the port, None if none is said."""

    name: str
    port: int | None

    @property
    def is_address(self) -> bool:
        """Return whether the name is an IP address: no DNS server can point that elsewhere."""
        return _reads(ipaddress.ip_address, self.name)


def parse(text: str) -> Authority | None:
    """Return what a Host header says, None if it is malformed."""
    found = _AUTHORITY.fullmatch(text)
    if found is None or int(found["port"] or 0) > 0xFFFF:
        return None
    name = (found["ipv6"] or found["name"]).lower()
    if found["ipv6"] and not _reads(ipaddress.IPv6Address, name):
        return None
    return Authority(name, int(found["port"]) if found["port"] else None)


def of_origin(text: str) -> Authority | None:
    """Return the server of an Origin header; None for `null`, and if it is malformed."""
    found = _ORIGIN.fullmatch(text)
    return parse(found["authority"]) if found else None


def _reads(kind: Callable[[str], object], name: str) -> bool:
    """Return whether a name is an IP address of that kind."""
    try:
        kind(name)
    except ValueError:
        return False
    return True
