"""Self-made certificates, as OpenSSL sees them."""

import hashlib
import ssl

import pytest

from tsnetpy.base.addr import parse_ip
from tsnetpy.crypto import x509

NOW = 1_800_000_000 * 1_000_000_000


def test_a_certificate_names_what_it_is_for_and_is_pinned_by_its_der() -> None:
    made = x509.make_self_signed(["box.example"], [parse_ip("10.0.0.1"), parse_ip("fd00::1")], 30, NOW)
    der = ssl.PEM_cert_to_DER_cert(made.cert_pem.decode())
    assert made.sha256 == hashlib.sha256(der).hexdigest() == x509.fingerprint(made.cert_pem)
    assert x509.not_valid_after_ns(made.cert_pem) == NOW + 30 * 86_400 * 1_000_000_000
    assert b"BEGIN PRIVATE KEY" in made.key_pem
    for part in (b"box.example", parse_ip("10.0.0.1"), parse_ip("fd00::1")):
        assert part in der


def test_a_certificate_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        x509.make_self_signed([], [], 1, NOW)


def test_two_certificates_never_share_a_key() -> None:
    first, second = (x509.make_self_signed(["a"], [], 1, NOW) for _ in range(2))
    assert first.key_pem != second.key_pem
    assert first.sha256 != second.sha256
