"""A certificate for 127.0.0.1 and the configuration that uses it."""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

PRODUCTION = "deploy/config.production.properties"


def write_certificate(folder: Path) -> None:
    """One for 127.0.0.1 with the authority that signed it, its key as TorchServe reads it (RSA, PKCS#8)."""
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
    chain = [blob.bytes() for blob in pair.cert_chain_pems] + [authority.cert_pem.bytes()]
    (folder / "server.crt").write_bytes(b"".join(chain))
    key = serialization.load_pem_private_key(pair.private_key_pem.bytes(), password=None)
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
