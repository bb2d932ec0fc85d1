"""Which addresses webhooks may be sent to.

Whoever may create webhooks is an administrator, so addresses of this machine and of private networks are fair:
receivers mostly live there. What nobody means, and what gives away the credentials of a cloud machine, is refused:
link-local addresses, multicast, and those that stand for no machine. Looked at for every connection, after the name
was looked up, so that a name which changes its mind gains nothing.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")
_METADATA = frozenset({IPv4Address("100.100.100.200"), IPv4Address("192.0.0.192"), IPv6Address("fd00:ec2::254")})
"""Metadata services of clouds that are not link-local."""


def why_refused(address: str) -> str:
    """Why nothing is sent to an address; empty where it may be."""
    found = _real(ip_address(address.partition("%")[0]))
    if found.is_link_local or found in _METADATA:
        return "it is link-local, or serves the metadata of a cloud machine"
    if found.is_multicast:
        return "it is a multicast address"
    if found.is_unspecified or (found.version == 4 and (found in _THIS_NETWORK or found == _BROADCAST)):
        return "it stands for no machine"
    return ""


_BROADCAST = IPv4Address("255.255.255.255")
_THIS_NETWORK = frozenset({IPv4Address("0.0.0.0")})


def _real(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The address that is meant by one that carries another."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        return address if inner is None else inner
    return address
