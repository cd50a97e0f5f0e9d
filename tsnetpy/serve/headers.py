"""Header rules of the reverse proxy. Pure.

What a backend behind ``tailscale serve`` may rely on: the identity headers are written by the proxy or absent, never
the client's. This also holds for their spellings with underscores, which WSGI, CGI and several frameworks cannot tell
from hyphens (the official proxy lets those through).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

HeaderList: TypeAlias = list[tuple[bytes, bytes, bytes]]
"""Fields in order: name in lower case, name as sent, value without surrounding whitespace."""

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Fields that end at every hop (RFC 9110 §7.6.1 and what is customary beside it)."""

_IDENTITY: Final = frozenset(
    (
        b"tailscale-user-login",
        b"tailscale-user-name",
        b"tailscale-user-profile-pic",
        b"tailscale-headers-info",
        b"tailscale-funnel-request",
        b"tailscale-app-capabilities",
    )
)
_FORWARDED: Final = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))

PROXY_OWNED: Final = _IDENTITY | _FORWARDED
"""Fields that only this proxy may set."""

_DROP: Final = HOP_BY_HOP | PROXY_OWNED | frozenset((b"host", b"content-length"))

HEADERS_INFO: Final = b"https://tailscale.com/s/serve-headers"

_WORD_START: Final = "=?utf-8?q?"
_WORD_END: Final = "?="
_MAX_WORD: Final = 75  # RFC 2047 §2


def encode_header_text(text: str) -> bytes:
    """Return *text* fit for a header value: printable ASCII as it is, anything else in RFC 2047 Q encoding.

    Long text becomes several encoded words of at most 75 characters; no character is split over two.
    """
    if all(" " <= char <= "~" for char in text):
        return text.encode("ascii")
    words: list[str] = []
    word = ""
    for char in text:
        if char == " ":
            piece = "_"
        elif "!" <= char <= "~" and char not in "=?_":
            piece = char
        else:
            # Lone surrogates stand for bytes that were no UTF-8; nothing truthful can be sent for them.
            piece = "".join(f"={byte:02X}" for byte in char.encode("utf-8", "ignore"))
        if len(word) + len(piece) > _MAX_WORD - len(_WORD_START) - len(_WORD_END):
            words.append(word)
            word = ""
        word += piece
    words.append(word)
    return " ".join(f"{_WORD_START}{word}{_WORD_END}" for word in words).encode("ascii")


def identity_headers(login: str, name: str, picture: str) -> list[tuple[bytes, bytes]]:
    """Return the fields that say who is calling; none for a tagged node (empty *login*)."""
    if not login:
        return []
    return [
        (b"Tailscale-User-Login", encode_header_text(login)),
        (b"Tailscale-User-Name", encode_header_text(name)),
        (b"Tailscale-User-Profile-Pic", encode_header_text(picture)),
        (b"Tailscale-Headers-Info", HEADERS_INFO),
    ]


def capability_header(granted: Mapping[str, Sequence[object]], accepted: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """Return the field with the grants of the caller, restricted to the capabilities that the mount accepts.

    There is none when the mount accepts none or the caller holds none at all; ``{}`` says that it holds others only.
    """
    if not accepted or not granted:
        return []
    chosen = {cap: list(granted[cap]) for cap in sorted(accepted) if cap in granted}
    text = json.dumps(chosen, ensure_ascii=False, separators=(",", ":"))
    return [(b"Tailscale-App-Capabilities", encode_header_text(text))]


def forwarded_headers(client_ip: str, *, secure: bool) -> list[tuple[bytes, bytes]]:
    """Return the ``X-Forwarded-`` fields that are the same for every request of a connection."""
    fields = [(b"X-Forwarded-For", client_ip.encode("ascii"))]
    if secure:
        fields.append((b"X-Forwarded-Proto", b"https"))
    return fields


def serialize(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return *fields* as header lines."""
    return b"".join(b"%s: %s\r\n" % field for field in fields)


def connection_tokens(headers: HeaderList) -> frozenset[bytes]:
    """Return the options in all ``Connection`` fields, in lower case (RFC 9110 §7.6.1)."""
    found: set[bytes] = set()
    for lower, _, value in headers:
        if lower == b"connection":
            found.update(token.strip(b" \t").lower() for token in value.split(b","))
    found.discard(b"")
    return frozenset(found)


def request_head(
    method: bytes,
    target: bytes,
    host: bytes,
    headers: HeaderList,
    *,
    named: frozenset[bytes],
    proxy_fields: bytes,
    framing: bytes,
    upgrade: bytes,
) -> bytes:
    """Return the head of a request towards a backend.

    Args:
        method: as the client sent it.
        target: path and query for the backend.
        host: for ``Host``.
        headers: the client's.
        named: options of the client's ``Connection`` fields; fields of that name are dropped.
        proxy_fields: serialized lines that only the proxy may write.
        framing: the serialized line with the length of the body, or ``b""``.
        upgrade: the protocol that the client wants to switch to, or ``b""``.
    """
    parts = [method, b" ", target, b" HTTP/1.1\r\nHost: ", host, b"\r\n", framing]
    if upgrade:
        parts += (b"Connection: Upgrade\r\nUpgrade: ", upgrade, b"\r\n")
    for lower, name, value in headers:
        if lower in _DROP or lower in named:
            if lower == b"te" and b"trailers" in value.lower():
                parts.append(b"Te: trailers\r\n")
            continue
        if b"_" in lower and lower.replace(b"_", b"-") in PROXY_OWNED:
            continue
        parts += (name, b": ", value, b"\r\n")
    parts += (proxy_fields, b"\r\n")
    return b"".join(parts)
