"""Auth keys: made, stored as a hash, checked, used up.

A key is ``tskey-auth-<id>-<secret>``. The secret has 256 random bits, so a plain SHA-256 of it is safe to store: there
is no dictionary to try. The id is public; it names the key in listings and in logs.
"""

import hashlib
import hmac
import re
from typing import Final

import msgspec

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import ConfigError

PREFIX: Final = "tskey-auth-"
_SHAPE: Final = re.compile(r"tskey-auth-([0-9a-f]{12})-([0-9a-f]{64})")
_TAG: Final = re.compile(r"tag:[A-Za-z][A-Za-z0-9-]*")

DEFAULT_LIFETIME_NS: Final = 24 * 3600 * 1_000_000_000
"""A key that says nothing about its expiry lives one day."""


class AuthKeyRefused(Exception):
    """An auth key is no good; the message is what the node gets to read."""


class AuthKey(msgspec.Struct, omit_defaults=True):
    """One auth key as the state file keeps it."""

    id: str
    """The public part."""
    secret_sha256: str
    """Hex digest of the secret part."""
    user_id: int
    """Whose devices it makes (also for tagged ones: who made the key)."""
    created_ns: int
    """Wall clock, nanoseconds."""
    expires_ns: int
    """Wall clock, nanoseconds; 0 = never."""
    reusable: bool = False
    ephemeral: bool = False
    """Devices made with it are deleted once they have been away for a while."""
    tags: list[str] = []
    """Devices made with it carry these tags and belong to no user."""
    uses: int = 0
    """How many devices it has registered."""
    revoked: bool = False


def check_tags(tags: list[str] | tuple[str, ...]) -> list[str]:
    """Return *tags* sorted and without repetition.

    Raises:
        ConfigError: one is no tag (``tag:`` and a letter, then letters, digits and dashes).
    """
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise ConfigError(f"{tag!r} is no tag", hint="a tag is 'tag:' and a letter, then letters, digits, dashes")
    return sorted(set(tags))


def create(
    entropy: Entropy,
    *,
    user_id: int,
    now_wall_ns: int,
    lifetime_ns: int = DEFAULT_LIFETIME_NS,
    reusable: bool = False,
    ephemeral: bool = False,
    tags: list[str] | tuple[str, ...] = (),
) -> tuple[AuthKey, str]:
    """Return a new key's record and its text. The text exists only here: nothing stores it.

    Args:
        lifetime_ns: how long it may be used, nanoseconds; 0 = for ever.

    Raises:
        ConfigError: a bad tag or a negative lifetime.
    """
    if lifetime_ns < 0:
        raise ConfigError("an auth key cannot expire before it is made")
    key_id = entropy.bytes(6).hex()
    secret = entropy.bytes(32).hex()
    record = AuthKey(
        id=key_id,
        secret_sha256=_digest(secret),
        user_id=user_id,
        created_ns=now_wall_ns,
        expires_ns=now_wall_ns + lifetime_ns if lifetime_ns else 0,
        reusable=reusable,
        ephemeral=ephemeral,
        tags=check_tags(tags),
    )
    return record, f"{PREFIX}{key_id}-{secret}"


def find(keys: dict[str, AuthKey], text: str) -> AuthKey:
    """Return the record of the key *text*, whatever its condition.

    Raises:
        AuthKeyRefused: there is no such key. Malformed, unknown and wrong secret read the same.
    """
    shape = _SHAPE.fullmatch(text.strip())
    record = keys.get(shape.group(1)) if shape else None
    given = _digest(shape.group(2)) if shape else ""
    # compare_digest: the time it takes must not tell how much of the hash was right.
    if record is None or not hmac.compare_digest(record.secret_sha256, given):
        raise AuthKeyRefused("invalid pre auth key")
    return record


def check_usable(record: AuthKey, now_wall_ns: int) -> None:
    """Make sure that *record* may register one more device now.

    Raises:
        AuthKeyRefused: revoked, expired or used up.
    """
    if record.revoked:
        raise AuthKeyRefused("authkey revoked")
    if record.expires_ns and record.expires_ns <= now_wall_ns:
        raise AuthKeyRefused("authkey expired")
    if record.uses and not record.reusable:
        raise AuthKeyRefused("authkey already used")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
