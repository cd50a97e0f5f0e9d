"""The import rules of docs/architecture.md, as a test that needs nothing but the standard library."""

import ast
import pathlib
from collections.abc import Iterator

PKG = "tsnetpy"
ROOT = pathlib.Path(__file__).parents[1] / PKG
LAYERS: list[set[str]] = [  # top first; a package may import only packages of LOWER rows (siblings are strangers)
    {"cli", "testing"},
    {"ssh", "serve", "localapi", "coordinator", "wireguard", "http"},
    {"node"},
    {"control", "magicsock", "netstack"},
    {"runtime"},
    {"dataplane"},  # ---- everything from here down is sans-IO ----
    {"ipstack"},
    {"tcp", "nic", "wg", "disco", "derp", "ts2021", "dns"},
    {"wire", "noise", "tailcfg"},
    {"accel"},
    {"crypto"},
    {"base"},
]
RANK = {p: i for i, row in enumerate(LAYERS) for p in row}
PURE = {p for p, i in RANK.items() if i >= RANK["dataplane"]}
IMPURE = {
    *("anyio", "asyncio", "trio", "socket", "ssl", "select", "selectors", "threading", "subprocess"),
    *("time", "random", "secrets", "os", "logging"),
}
DOORS = {
    "nacl": "crypto",
    "cryptography": "crypto",
    "dnslib": "dns",
    "paramiko": "ssh",
    "httpx": "http",
    "httpcore": "http",
    "scapy": "testing",
    "tsnetpy_native": "accel",
}
EXCEPT = {
    ("base.entropy", "os"),  # the system's random source
    ("accel", "os"),  # one environment variable, read at import
    ("testing.clock", "asyncio"),  # virtual time is an event loop of asyncio's own; trio has one ready-made
}
FACADE = {"__init__", "errors"}  # public re-exports: may import anything, imported by no package


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module) for every import in *path*, TYPE_CHECKING blocks included."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    here = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            mod = ".".join([*base, *filter(None, [node.module])])
            if mod == PKG:
                yield from ((node.lineno, f"{PKG}.{a.name}") for a in node.names)
            else:
                yield node.lineno, mod


def violations() -> Iterator[str]:
    """Yield one line for each broken rule."""
    for path in sorted(ROOT.rglob("*.py")):
        me = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        top = me.split(".")[0]
        if top in FACADE:
            continue
        if me.endswith("__main__"):
            top = (
                "cli"  # `python -m tsnetpy` and `python -m tsnetpy.serve` are applications: they put features together
            )
        if top not in RANK:
            yield f"{path}: package {top!r} is in no layer"
            continue
        for line, mod in imports(path):
            head, _, rest = mod.partition(".")
            where = f"{path.relative_to(ROOT.parent)}:{line}: {me} -> {mod}"
            if head == PKG:
                other = rest.split(".")[0]
                if other not in RANK:
                    yield f"{where}: engine code must not import the facade"
                elif other not in (top, me.split(".")[0]) and RANK[other] <= RANK[top]:
                    yield f"{where}: upward or sideways import"
            elif top in PURE and head in IMPURE and (me, head) not in EXCEPT:
                yield f"{where}: {head} in a sans-IO package"
            elif head in DOORS and DOORS[head] != top:
                yield f"{where}: only {DOORS[head]} may import {head}"
            elif head == "asyncio" and (me, head) not in EXCEPT:
                yield f"{where}: anyio is the runtime, trio must work too"


def test_import_rules() -> None:
    assert not (bad := list(violations())), "\n".join(bad)
