"""The ports of the gateway and TorchServe, and a test that they are free.

`python -m audiocnn.torchserve.ports [BASE]` needs the standard library only: `make serve` runs it before it
installs anything.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

GATEWAY = 8000
_OFFSETS = {"inference": 80, "management": 81, "metrics": 82, "gRPC inference": 70, "gRPC management": 71}
HIGHEST_BASE = 65_535 - max(_OFFSETS.values())


def ports(base: int | None) -> dict[str, int]:
    """Port numbers by name: those of config.properties, or the gateway on `base` and the others above it."""
    if base is not None:
        return {"gateway": base} | {name: base + offset for name, offset in _OFFSETS.items()}
    defaults = {"inference": 8080, "management": 8081, "metrics": 8082}
    return {"gateway": GATEWAY, **defaults, "gRPC inference": 7070, "gRPC management": 7071}


def properties(base: int) -> dict[str, str]:
    """Settings of config.properties that move TorchServe's ports to a gateway on port `base`."""
    number = ports(base)
    addresses = {f"{name}_address": number[name] for name in ("inference", "management", "metrics")}
    lines = {name: f"http://127.0.0.1:{port}" for name, port in addresses.items()}
    grpc = {"grpc_inference_port": "gRPC inference", "grpc_management_port": "gRPC management"}
    return lines | {key: str(number[name]) for key, name in grpc.items()}


def taken(numbers: dict[str, int]) -> dict[str, int]:
    """The ports that are in use."""
    return {name: port for name, port in numbers.items() if not is_free("127.0.0.1", port)}


def is_free(host: str, port: int) -> bool:
    """Whether a server can listen on this address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a restarted server does
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ports that are in use; exit code 0: none; 1: some; 2: a wrong number."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and not (words[0].isdecimal() and 0 < int(words[0]) <= HIGHEST_BASE):
        print(f"error: PORT_BASE={words[0]} is no number from 1 to {HIGHEST_BASE}", file=sys.stderr)
        return 2
    busy = taken(ports(int(words[0]) if words else None))
    for name, port in busy.items():
        print(f"error: port {port} ({name}) is in use", file=sys.stderr)
    if busy:
        print("Take other ports: make serve PORT_BASE=9000", file=sys.stderr)
    return int(bool(busy))


if __name__ == "__main__":
    sys.exit(main())
