"""What a program gets from a node has a name that the program can import."""

import inspect
import typing

import tsnetpy


def test_what_a_node_returns_is_exported() -> None:
    classes: set[type] = set()
    for _, method in inspect.getmembers(tsnetpy.Node, inspect.isfunction):
        if not method.__name__.startswith("_"):
            returned = typing.get_type_hints(method).get("return")
            classes.update(kind for kind in (returned, *typing.get_args(returned)) if inspect.isclass(kind))
    ours = {kind.__name__ for kind in classes if kind.__module__.startswith("tsnetpy.")}
    assert {"TcpStream", "TcpListener", "UdpSocket", "ConnectedUdpSocket"} <= ours
    assert ours <= set(tsnetpy.__all__)
