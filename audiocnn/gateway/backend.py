"""The model server behind the gateway: TorchServe, or one that speaks the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from audiocnn.errors import ServerError
from audiocnn.gateway.settings import Settings


class Backend(Protocol):
    """What the gateway calls; an asynchronous context manager that closes its connections."""

    async def __aenter__(self) -> Self:
        """Start."""
        ...

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        ...

    async def predict(
        self,
        clip: bytes,
        options: Mapping[str, object] | None = None,
        *,
        request_id: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The answer to a sound file; raises as `audiocnn.Client.predict`."""
        ...

    async def ready(self, *, timeout_seconds: float) -> bool:
        """Whether a prediction of a short tone succeeds now; not retried."""
        ...


def open_backend(
    settings: Settings, deadline_seconds: float, on_retry: Callable[[ServerError], None]
) -> Backend:
    """The backend that the settings choose."""
    if settings.backend == "v2":
        from audiocnn.gateway.v2_backend import V2Backend  # late: loads NumPy, SciPy and codecs

        return V2Backend(settings, deadline_seconds, on_retry)
    from audiocnn.gateway.torchserve_client import TorchServeClient

    return TorchServeClient(
        settings.torchserve_url,
        model=settings.torchserve_model,
        deadline_seconds=deadline_seconds,
        attempt_seconds=deadline_seconds,
        max_server_failures=1,
        key_file=settings.torchserve_key_file,
        management=settings.torchserve_management,
        ca_file=settings.torchserve_ca_file,
        on_retry=on_retry,
    )
