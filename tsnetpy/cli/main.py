"""Which commands there are, and how one is chosen."""

import argparse
import sys
from collections.abc import Sequence

from tsnetpy.base.version import VERSION
from tsnetpy.coordinator import serve as coordinator

from . import ip, nc, ping, ssh, status, up, wg

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 refused by the coordination server, 4 coordination server
unreachable, 5 state directory unusable or in use, 6 peer unreachable, 130 interrupted

`python -m tsnetpy.serve TARGET` serves a port, URL, directory or ASGI app on the tailnet."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tsnetpy",
        description="Join a tailnet from this one process: no root, no TUN device, no daemon.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tsnetpy {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (up, status, ip, ping, nc, ssh, wg):
        module.register(commands)
    box = commands.add_parser("coordinator", help="run and manage a small coordination server of your own")
    coordinator.add_arguments(box)
    box.set_defaults(run=coordinator.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    result: int = args.run(args)
    return result
