"""Sound files for schemathesis: random bytes never reach the network."""

from __future__ import annotations

import base64

import schemathesis
from hypothesis import strategies as st

from audiocnn.probe import probe_wav

SOUNDS = st.one_of(st.just(probe_wav()), st.just(probe_wav()[:100]), st.binary(max_size=1000))

schemathesis.openapi.format("binary", SOUNDS)
schemathesis.openapi.format("byte", SOUNDS.map(lambda sound: base64.b64encode(sound).decode()))
