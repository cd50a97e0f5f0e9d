"""The numbers of the protocol (whitepaper section 6.1, and wireguard-go where the paper leaves a choice)."""

from typing import Final

from tsnetpy.base.instant import MILLISECOND, SECOND

REKEY_AFTER_MESSAGES: Final = 1 << 60
REJECT_AFTER_MESSAGES: Final = (1 << 64) - (1 << 13) - 1
REKEY_AFTER_TIME: Final = 120 * SECOND
REJECT_AFTER_TIME: Final = 180 * SECOND
REKEY_TIMEOUT: Final = 5 * SECOND
REKEY_TIMEOUT_JITTER: Final = 334 * MILLISECOND
"""Uniform in [0, this): keeps two peers that began together from colliding for ever."""
MAX_HANDSHAKE_ATTEMPTS: Final = 18
"""REKEY_ATTEMPT_TIME (90 s) in steps of REKEY_TIMEOUT. The counter is checked before it grows, hence 20 initiations."""
KEEPALIVE_TIMEOUT: Final = 10 * SECOND
COOKIE_REFRESH_TIME: Final = 120 * SECOND
HANDSHAKE_INITIATION_SPACING: Final = 20 * MILLISECOND
"""Closer initiations from one peer are a flood or a replay."""
UNDER_LOAD_AFTER_TIME: Final = 1 * SECOND
"""How long load lasts after the last sign of it."""

MAX_PEERS: Final = 1 << 16
MAX_STAGED_PACKETS: Final = 128
"""Packets that wait for a session, per peer; the oldest goes first."""
MAX_OUTGOING_BATCHES: Final = 4096
"""Batches that the owner has not taken yet; the oldest goes first."""
MAX_EVENTS: Final = 1024
"""Events that the owner has not taken yet; the oldest goes first."""
