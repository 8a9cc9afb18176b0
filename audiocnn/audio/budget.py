"""The time that one batch may take, so that no clip holds up its neighbours: short clips first, and a clip
that the time does not reach is refused alone.

The first clip to finish is exempt from the deadline: a clip that is alone in its batch is always answered,
and a batch of nothing but long clips makes progress however slow the machine is. So is one that is decoded
for long and then fails, but not the next one: eight of these would take the time of eight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from audiocnn.audio.decoder import Clip, ClipDecoder
from audiocnn.errors import AudioError, BudgetExceededError

_TURN_SECONDS = 0.25  # of decoding, before clips that need more have to wait for those that need less


class Budget:
    """Deadlines of a batch that starts now: half of the time is for decoding, the rest for the network.

    >>> Budget(20.0).is_over
    False
    """

    def __init__(self, seconds: float = math.inf) -> None:
        """`seconds` of wall time, greater than 0; infinite: no deadline."""
        now = time.monotonic()
        self.decoding_ends, self._ends = now + seconds / 2, now + seconds

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return time.monotonic() > self._ends


def decode_in_turns(decoders: Mapping[int, ClipDecoder], budget: Budget) -> dict[int, Clip | AudioError]:
    """Every clip, its own error, or `BudgetExceededError` where decoding was not done in time.

    Each decoder gets a short turn; then those that are left run to their end, in the order given.
    """
    outcomes: dict[int, Clip | AudioError] = {}
    is_exempt = True  # from the deadline: until a clip is there, or one took long beyond it and then failed
    for turn_seconds in (_TURN_SECONDS, math.inf):
        for number, decoder in decoders.items():
            if number in outcomes:
                continue
            began = time.monotonic()
            until = began + turn_seconds
            if outcome := _advance(decoder, until if is_exempt else min(until, budget.decoding_ends)):
                outcomes[number] = outcome
                is_late = time.monotonic() > max(budget.decoding_ends, began + _TURN_SECONDS)
                is_exempt = is_exempt and not is_late and not isinstance(outcome, Clip)
    return {number: outcomes.get(number) or BudgetExceededError() for number in decoders}


def _advance(decoder: ClipDecoder, until: float) -> Clip | AudioError | None:
    """Decode until the end of the clip or the time; None if there is more to decode."""
    try:
        while time.monotonic() <= until:
            if not decoder.step():
                return decoder.clip
    except AudioError as error:
        return error
    return None
