"""Free ports, and the addresses of a TorchServe beside others on one machine."""

from __future__ import annotations

from audiocnn.torchserve.ports import free_port

_used: set[int] = set()


def new_port() -> int:
    """A free port, never the same twice: several servers are started before the first one listens."""
    while (port := free_port()) in _used:
        pass
    _used.add(port)
    return port


def new_address() -> str:
    """`http://127.0.0.1:PORT` with a free port."""
    return f"http://127.0.0.1:{new_port()}"


def private_addresses() -> dict[str, str]:
    """Lines of config.properties that give a TorchServe five free ports."""
    http = {f"{name}_address": new_address() for name in ("inference", "management", "metrics")}
    return http | {f"grpc_{name}_port": str(new_port()) for name in ("inference", "management")}
