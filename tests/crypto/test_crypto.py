"""Each primitive against vectors that others published."""

import hmac
from collections.abc import Callable

import pytest

from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.crypto import dh, sign
from tsnetpy.crypto.aead import Aead, XAead
from tsnetpy.crypto.box import Box
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.crypto.hash import blake2s, blake2s_mac, equal, hkdf, hmac_blake2s

SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: "
    b"If I could offer you only one tip for the future, sunscreen would be it."
)


def test_chacha20_poly1305_rfc8439_section_2_8_2() -> None:
    cipher = Aead(bytes(range(0x80, 0xA0)))
    nonce = bytes.fromhex("070000004041424344454647")
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = cipher.seal(nonce, SUNSCREEN, aad)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    assert cipher.open(nonce, sealed, aad) == SUNSCREEN

    out = bytearray(200)
    assert cipher.seal_into(nonce, SUNSCREEN, out, aad) == len(sealed)
    assert out[: len(sealed)] == sealed
    assert not any(out[len(sealed) :])
    back = bytearray(200)
    assert cipher.open_into(nonce, sealed, back, aad) == len(SUNSCREEN)
    assert back[: len(SUNSCREEN)] == SUNSCREEN


def test_xchacha20_poly1305_draft_irtf_cfrg_xchacha_03_appendix_a_3_1() -> None:
    cipher = XAead(bytes(range(0x80, 0xA0)))
    nonce = bytes(range(0x40, 0x58))
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = cipher.seal(nonce, SUNSCREEN, aad)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"
    assert cipher.open(nonce, sealed, aad) == SUNSCREEN


@pytest.mark.parametrize("spoil", ["ciphertext", "tag", "aad", "nonce", "short"])
@pytest.mark.parametrize("make", [Aead, XAead])
def test_a_changed_message_does_not_open(make: type[Aead] | type[XAead], spoil: str) -> None:
    cipher = make(bytes(32))
    nonce = bytearray(12 if make is Aead else 24)
    sealed = bytearray(cipher.seal(bytes(nonce), b"text", b"aad"))
    aad = b"aad"
    if spoil == "ciphertext":
        sealed[0] ^= 1
    elif spoil == "tag":
        sealed[-1] ^= 128
    elif spoil == "aad":
        aad = b"aaD"
    elif spoil == "nonce":
        nonce[-1] ^= 1
    else:
        del sealed[15:]
    with pytest.raises(CryptoError):
        cipher.open(bytes(nonce), sealed, aad)
    if isinstance(cipher, Aead):
        with pytest.raises(CryptoError):
            cipher.open_into(bytes(nonce), sealed, bytearray(64), aad)


@pytest.mark.parametrize(
    "bad_call",
    [
        lambda: Aead(bytes(31)),
        lambda: XAead(bytes(33)),
        lambda: Aead(bytes(32)).seal(bytes(8), b""),
        lambda: XAead(bytes(32)).open(bytes(12), bytes(16)),
        lambda: Aead(bytes(32)).seal_into(bytes(12), b"1234", bytearray(19)),
        lambda: Aead(bytes(32)).open_into(bytes(12), Aead(bytes(32)).seal(bytes(12), b"1234"), bytearray(3)),
        lambda: dh.public_key(bytes(31)),
        lambda: dh.shared(bytes(32), bytes(31)),
        lambda: sign.public_key(bytes(64)),
        lambda: Box(bytes(31), bytes(32)),
    ],
)
def test_wrong_sizes_are_typed_errors(bad_call: Callable[[], object]) -> None:
    with pytest.raises(CryptoError):
        bad_call()


def test_secrets_do_not_print() -> None:
    key = bytes.fromhex("ab" * 32)
    for thing in (Aead(key), XAead(key), Box(key, dh.public_key(key))):
        assert "ab" * 4 not in repr(thing)
        assert "redacted" in repr(thing)


def test_x25519_rfc7748_section_6_1() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert dh.public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert dh.public_key(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert dh.shared(alice, dh.public_key(bob)).hex() == dh.shared(bob, dh.public_key(alice)).hex() == secret


def test_x25519_rfc7748_section_5_2_scalar_multiplication() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert dh.shared(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_low_order_points_are_refused(point: bytes) -> None:
    with pytest.raises(CryptoError):
        dh.shared(dh.clamp(bytes(range(32))), point)


def test_generated_keys_are_clamped_and_differ() -> None:
    one, two = dh.generate(SystemEntropy()), dh.generate(SystemEntropy())
    assert one != two
    for key in (one, two):
        assert key[0] & 7 == 0
        assert key[31] & 0xC0 == 0x40


def test_box_opens_only_what_the_other_side_sealed() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    nonce = bytes(range(24))
    ours, theirs = Box(alice, dh.public_key(bob)), Box(bob, dh.public_key(alice))
    sealed = ours.seal(nonce, b"disco")
    assert len(sealed) == 5 + 16
    assert theirs.open(nonce, sealed) == b"disco"
    for bad in (b"", sealed[:15], sealed[:-1] + bytes((sealed[-1] ^ 1,))):
        with pytest.raises(CryptoError):
            theirs.open(nonce, bad)
    with pytest.raises(CryptoError):
        theirs.open(nonce[1:], sealed)


def test_blake2s_rfc7693_appendix_b_and_the_keyed_form() -> None:
    assert blake2s(b"abc").hex() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    # First entries of the BLAKE2s known-answer file: keyed with 00..1f.
    key = bytes(range(32))
    assert blake2s_mac(key, b"", 32).hex() == "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49"
    assert len(blake2s_mac(key, b"")) == 16
    assert blake2s_mac(key, b"") != blake2s_mac(key, b"", 32)[:16]


def test_hmac_agrees_with_the_standard_library() -> None:
    for key in (b"", b"k" * 32, b"k" * 64, b"k" * 65):
        assert hmac_blake2s(key, b"message") == hmac.new(key, b"message", "blake2s").digest()


def test_hkdf_chains() -> None:
    prk = hmac_blake2s(b"c" * 32, b"ikm")
    one, two, three = hkdf(b"c" * 32, b"ikm", 3)
    assert one == hmac_blake2s(prk, b"\x01")
    assert two == hmac_blake2s(prk, one + b"\x02")
    assert three == hmac_blake2s(prk, two + b"\x03")
    assert hkdf(b"c" * 32, b"ikm", 1) == (one,)


def test_equal_compares() -> None:
    assert equal(b"12", memoryview(b"12"))
    assert not equal(b"12", b"13")


def test_ed25519_rfc8032_section_7_1_test_2() -> None:
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    assert sign.public_key(seed) == public
    signature = sign.sign(seed, b"\x72")
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540")
    sign.verify(public, b"\x72", signature)
    for message, broken in ((b"\x73", signature), (b"\x72", bytes(64)), (b"\x72", signature[:63])):
        with pytest.raises(CryptoError):
            sign.verify(public, message, broken)
