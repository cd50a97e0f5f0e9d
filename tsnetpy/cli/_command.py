"""What the commands share: a node that runs for as long as the command does."""

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

from tsnetpy.node.node import Node
from tsnetpy.node.program import Progress, add_node_arguments, configure_logging, node_config, run_program

Body = Callable[[Node, argparse.Namespace, Progress], Awaitable[int | None]]
Subparsers = Any  # argparse names this type only in private
"""What ``ArgumentParser.add_subparsers`` returns."""


def add_command(commands: Subparsers, name: str, help_text: str, body: Body) -> argparse.ArgumentParser:
    """Add a command that joins the tailnet, runs *body*, and leaves; return its parser for further arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    add_node_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    parser.set_defaults(run=lambda args: _with_node(args, body))
    return parser


def _with_node(args: argparse.Namespace, body: Body) -> int:
    """Join with the flags in *args*, run *body*, leave; return the exit code."""
    configure_logging(args.verbose)
    progress = Progress(as_json=args.json)

    async def main() -> int | None:
        config = node_config(args, progress)
        progress.say("joining", "", server=config.control_url, hostname=config.hostname)
        async with Node(config) as node:
            return await body(node, args, progress)

    return run_program(main, progress)
