"""How many connections one address may have open."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network

from audiocnn.gateway.settings import Settings


def counted_address(host: str) -> str:
    """The address that limits count: of IPv6 the /64 network, which one machine has for itself."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((address, 64), strict=False))


class ConnectionLimit:
    """Counts the open connections of each address; those of trusted proxies are not counted."""

    def __init__(self, settings: Settings) -> None:
        self._max = settings.max_connections_per_address
        self._is_trusted = settings.is_trusted_proxy
        self._open: Counter[str] = Counter()

    def take(self, host: str) -> bool:
        """Count one more, unless the address has as many as it may."""
        if self._is_free(host):
            return True
        address = counted_address(host)
        if self._open[address] >= self._max:
            return False
        self._open[address] += 1
        return True

    def give_back(self, host: str) -> None:
        """One for which `take` was true is closed."""
        if self._is_free(host):
            return
        address = counted_address(host)
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def _is_free(self, host: str) -> bool:
        return not self._max or self._is_trusted(host)
