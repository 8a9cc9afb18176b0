"""What an operator may choose, read from environment variables; docs/gateway.md has the table."""

from __future__ import annotations

import hashlib
import os
import ssl
from functools import cached_property
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AnyHttpUrl, Field, TypeAdapter, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from audiocnn.config import Config
from audiocnn.errors import ModelFileError

MIN_KEY_LENGTH = 32
MIB = 1 << 20

Names = Annotated[tuple[str, ...], NoDecode]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """Environment variables are these names in upper case; a wrong value stops the start."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    gateway_host: str = "127.0.0.1"
    gateway_port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    model_config_file: Path = Path("checkpoints/esc50/config.json")
    backend: Literal["torchserve", "v2"] = "torchserve"
    v2_url: Annotated[str, Field(validate_default=True)] = ""
    v2_model: str = "audiocnn-waveform"
    v2_token: Annotated[str, Field(repr=False)] = ""  # sent as Authorization: Bearer
    torchserve_url: str = "http://127.0.0.1:8080"
    torchserve_model: str = "audiocnn"
    torchserve_management: str | None = None  # renews expired tokens
    torchserve_key_file: Path | None = None
    torchserve_ca_file: Path | None = None

    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = None  # None: /metrics is one of the routes
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: Path | None = None  # rolled over; None: standard error
    log_format: Literal["json", "text"] | None = None  # None: text on a terminal, else JSON

    allowed_origins: Names = ()  # none given: the gateway's own addresses on loopback
    allowed_hosts: Names = ()  # names in `Host` beside addresses, localhost and the origins' names; "*": all
    trusted_proxies: Names = ()  # addresses or networks whose X-Forwarded-For is believed
    api_keys: Annotated[Names, Field(repr=False)] = ()
    rate_limit_per_minute: Annotated[int, Field(ge=0)] = 0  # per key, else per address; 0: no limit

    max_upload_mb: Annotated[float, Field(gt=0, le=2048)] = 40.0  # MiB in one request
    max_buffered_mb: Annotated[float, Field(gt=0)] = 512.0  # MiB in all requests together
    max_files: Annotated[int, Field(ge=1, le=1000)] = 64  # in one batch
    max_in_flight: Annotated[int, Field(ge=1)] = 64
    long_clip_mb: Annotated[float, Field(gt=0)] = 2.0  # MiB: clips from this size on wait for each other
    max_long_in_flight: Annotated[int, Field(ge=1)] = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 1) - 1)
    )
    max_connections_per_address: Annotated[int, Field(ge=0)] = 512  # 0: no limit
    header_seconds: Seconds = 10.0
    upload_seconds: Seconds = 60.0
    deadline_seconds: Seconds = 30.0

    max_streams: Annotated[int, Field(ge=1)] = 1000
    stream_in_flight: Annotated[int, Field(ge=1)] = 8
    stream_idle_seconds: Seconds = 60.0
    stream_start_seconds: Seconds = 10.0
    stream_smoothing_seconds: Annotated[float, Field(ge=0, le=60)] = 2.0

    @field_validator("allowed_origins", "allowed_hosts", "trusted_proxies", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _are_long(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) for key in keys):
            raise ValueError(
                f"every key needs at least {MIN_KEY_LENGTH} printable ASCII characters; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return keys

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(each, strict=False)) for each in networks)

    @field_validator("log_level", "log_format", "backend", mode="before")
    @classmethod
    def _lower(cls, word: object) -> object:
        return word.lower() if isinstance(word, str) else word

    @field_validator("torchserve_url", "v2_url")
    @classmethod
    def _is_address(cls, url: str, info: ValidationInfo) -> str:
        if info.field_name == "torchserve_url" or info.data.get("backend") == "v2":
            TypeAdapter(AnyHttpUrl).validate_python(url)
        return url.rstrip("/")

    @field_validator("v2_token", "torchserve_key_file")
    @classmethod
    def _is_the_only_one(cls, key: object, info: ValidationInfo) -> object:
        name = "v2_url" if info.field_name == "v2_token" else "torchserve_url"
        if key and "@" in urlsplit(info.data.get(name, "")).netloc:
            raise ValueError(
                f"{name.upper()} has a user name, which cannot be sent beside a key: leave one out"
            )
        return key

    @field_validator("torchserve_ca_file")
    @classmethod
    def _is_certificate(cls, path: Path | None) -> Path | None:
        if path:
            try:
                ssl.create_default_context(cafile=path)
            except OSError as error:  # ssl.SSLError is one
                raise ValueError(f"no certificates in PEM can be read from {path}: {error}") from None
        return path

    @field_validator("backend")
    @classmethod
    def _is_possible(cls, backend: str, info: ValidationInfo) -> str:
        if backend == "v2":
            try:
                Config.from_json(info.data["model_config_file"].read_text(encoding="utf-8"))
            except (OSError, ModelFileError) as error:
                raise ValueError(
                    f"v2 needs MODEL_CONFIG_FILE, the config.json of its model: {error}"
                ) from None
            if find_spec("soundfile") is None:
                raise ValueError(
                    "v2 decodes here: pip install 'audiocnn-serve[gateway,formats]', or build the image with "
                    "GATEWAY_EXTRAS='base formats'"
                )
        return backend

    @property
    def max_upload_bytes(self) -> int:
        """Most bytes of audio in one request."""
        return int(self.max_upload_mb * MIB)

    @cached_property
    def key_digests(self) -> tuple[bytes, ...]:
        """SHA-256 of the keys: what is compared has one length, so nothing is learnt from the time."""
        return tuple(hashlib.sha256(key.encode()).digest() for key in self.api_keys)

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """Origins whose pages may ask: those given, else the gateway's own addresses."""
        own = tuple(f"http://{host}:{self.gateway_port}" for host in ("127.0.0.1", "localhost", "[::1]"))
        return tuple(origin.rstrip("/") for origin in self.allowed_origins) or own

    @cached_property
    def hosts(self) -> frozenset[str]:
        """Names, in lower case, by which the gateway may be asked."""
        of_origins = (urlsplit(origin).hostname or "" for origin in self.allowed_origins)
        return frozenset({"localhost", *(host.lower() for host in self.allowed_hosts), *of_origins} - {""})

    @cached_property
    def _proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(ip_network(each) for each in self.trusted_proxies)

    def is_trusted_proxy(self, host: str) -> bool:
        """Whether an address is one of `trusted_proxies`."""
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._proxy_networks)
