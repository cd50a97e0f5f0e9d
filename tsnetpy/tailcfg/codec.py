"""JSON to structs and back, with Go's reading rules (control protocol reference, section 0).

Go matches names without regard to case, takes ``null`` for "not set" anywhere, and skips unknown names. msgspec matches
exactly, so text goes straight to the decoder when every name in it is spelled as Go spells it, and otherwise through a
pass that renames by type. Real servers always take the fast way.
"""

import re
from typing import Final, TypeVar

import msgspec

from tsnetpy.base.errors import DecodeError
from tsnetpy.base.keys import ChallengePublic, DiscoPublic, MachinePublic, NodePublic, PublicKey

from ._inspect import Shape, shape_of

T = TypeVar("T")

_KEY_TYPES: Final[dict[object, type[PublicKey]]] = {
    NodePublic: NodePublic,
    MachinePublic: MachinePublic,
    DiscoPublic: DiscoPublic,
    ChallengePublic: ChallengePublic,
}
_NAMES: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:')
_MAX_DEPTH: Final = 64


def _decode_hook(wanted: type, value: object) -> object:
    if wanted is object:  # RawMessage: any JSON
        return value
    key_type = _KEY_TYPES.get(wanted)
    if key_type is None:
        raise DecodeError(f"no decoder for {wanted.__name__}")
    if value == "":  # Go's zero key also unmarshals from nothing
        return key_type.zero()
    if not isinstance(value, str):
        raise DecodeError("a key is text")
    return key_type.parse(value)


def _encode_hook(value: object) -> object:
    if isinstance(value, PublicKey):
        return value.text()
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encoder: Final = msgspec.json.Encoder(enc_hook=_encode_hook)


class _Codec:
    """What decoding one root type needs, made once per type."""

    __slots__ = ("decoder", "exact", "folded", "shape", "type")

    def __init__(self, root: type) -> None:
        self.type = root
        self.decoder: msgspec.json.Decoder[object] = msgspec.json.Decoder(root, dec_hook=_decode_hook)
        self.shape = shape_of(root)
        names: set[str] = set()
        self.shape.collect_names(names, set())
        self.exact = frozenset(names)
        self.folded = frozenset(name.lower() for name in names)

    def spelled_exactly(self, data: bytes) -> bool:
        """Tell whether no name in *data* is a known one in another case."""
        for raw in set(_NAMES.findall(data)):
            name = raw.decode("utf-8", "replace")
            if name not in self.exact and name.lower() in self.folded:
                return False
        return True


_codecs: Final[dict[type, _Codec]] = {}


def _codec_for(root: type) -> _Codec:
    codec = _codecs.get(root)
    if codec is None:
        codec = _codecs[root] = _Codec(root)
    return codec


def decode(data: bytes | bytearray | memoryview, root: type[T]) -> T:
    """Return the *root* message that JSON *data* holds.

    Raises:
        DecodeError: no JSON, or a value of the wrong kind. The text names the field, never its value.
    """
    codec = _codec_for(root)
    raw = bytes(data)

    try:
        if codec.spelled_exactly(raw):
            try:
                decoded = codec.decoder.decode(raw)
                if isinstance(decoded, root):
                    return decoded
            except msgspec.ValidationError:
                pass  # most often a null where Go allows one: the slow way drops those
        tree = fold(msgspec.json.decode(raw), codec.shape)
        return msgspec.convert(tree, root, dec_hook=_decode_hook, str_keys=True)
    except DecodeError:
        raise
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"{root.__name__}: {_harmless(error)}") from None


def encode(message: msgspec.Struct) -> bytes:
    """Return the JSON of *message*, with Go's names."""
    return _encoder.encode(message)


def fold(value: object, shape: Shape, depth: int = 0) -> object:
    """Return *value* with the names of *shape* in their exact spelling and without nulls that mean "not set"."""
    if depth > _MAX_DEPTH:
        raise DecodeError("nested too deeply")
    if isinstance(value, dict):
        if shape.fields is not None:
            out: dict[str, object] = {}
            for name, item in value.items():
                known = shape.fields.get(str(name).lower())
                if known is None:
                    continue
                exact, inner = known
                if item is None and not inner.nullable:
                    continue
                out[exact] = fold(item, inner, depth + 1)
            return out
        if shape.values is not None:
            values = shape.values
            return {
                name: fold(item, values, depth + 1)
                for name, item in value.items()
                if item is not None or values.nullable
            }
    elif isinstance(value, list) and shape.items is not None:
        items = shape.items
        return [fold(item, items, depth + 1) for item in value if item is not None or items.nullable]
    return value


def _harmless(error: Exception) -> str:
    """Return *error*'s text; msgspec's own never repeats input, a codec's might."""
    return str(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__
