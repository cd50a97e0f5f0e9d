"""Where names occur in a message type: what :func:`.codec.fold` walks along."""

from typing import Final, Self, final

from msgspec import inspect


@final
class Shape:
    """One place in a message.

    Attributes:
        fields: for a struct, lower-case name to (exact name, shape of the value); else ``None``.
        values: for an object with free names, the shape of its values.
        items: for an array, the shape of its elements.
        nullable: ``null`` has a meaning of its own here.
    """

    __slots__ = ("fields", "items", "nullable", "values")

    def __init__(self) -> None:
        self.fields: dict[str, tuple[str, Self]] | None = None
        self.values: Self | None = None
        self.items: Self | None = None
        self.nullable = False

    def collect_names(self, into: set[str], seen: set[int]) -> None:
        """Add every exact struct field name that can occur at or below this place."""
        if id(self) in seen:
            return
        seen.add(id(self))
        for exact, inner in (self.fields or {}).values():
            into.add(exact)
            inner.collect_names(into, seen)
        for below in (self.values, self.items):
            if below is not None:
                below.collect_names(into, seen)


_structs: Final[dict[type, Shape]] = {}


def shape_of(root: type) -> Shape:
    """Return the shape of the struct type *root*."""
    return _shape(inspect.type_info(root))


def _shape(info: inspect.Type) -> Shape:
    if isinstance(info, inspect.StructType):
        return _struct_shape(info)
    shape = Shape()
    if isinstance(info, inspect.UnionType):
        for option in info.types:
            if isinstance(option, inspect.NoneType):
                shape.nullable = True
                continue
            inner = _shape(option)
            shape.fields, shape.values, shape.items = inner.fields, inner.values, inner.items
    elif isinstance(info, inspect.DictType):
        shape.values = _shape(info.value_type)
    elif isinstance(info, (inspect.ListType, inspect.VarTupleType)):
        shape.items = _shape(info.item_type)
    elif isinstance(info, (inspect.AnyType, inspect.CustomType, inspect.NoneType)):
        shape.nullable = True
    return shape


def _struct_shape(info: inspect.StructType) -> Shape:
    shape = _structs.get(info.cls)
    if shape is None:
        shape = _structs[info.cls] = Shape()
        fields: dict[str, tuple[str, Shape]] = {}
        shape.fields = fields
        for field in info.fields:
            fields[field.encode_name.lower()] = (field.encode_name, _shape(field.type))
    return shape
