"""``python -m tsnetpy.serve TARGET``: join the tailnet, publish something, leave at Ctrl-C.

::

    python -m tsnetpy.serve 3000                 # http://<name>.<tailnet>/ -> http://127.0.0.1:3000
    python -m tsnetpy.serve ./public --https     # a directory, over TLS with a certificate made on the spot
    python -m tsnetpy.serve app:app              # an ASGI application, in this process
    python -m tsnetpy.serve --tcp db:5432        # raw TCP, port 5432

Progress and the access log go to standard error; ``--json`` writes one object a line to standard output instead.
Exit codes: 0 ended by itself, 1 failure, 2 usage or configuration, 3 login refused, 4 coordination server out of reach,
5 state unusable, 6 a tailnet port is taken, 130 Ctrl-C or SIGTERM.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict

import anyio

from tsnetpy.base.errors import ConfigError, TsnetError
from tsnetpy.node.config import host_label
from tsnetpy.node.node import Node
from tsnetpy.node.program import (
    Progress,
    add_node_arguments,
    configure_logging,
    exit_code,
    node_config,
    run_program,
)

from .config import (
    AsgiTarget,
    DirectoryTarget,
    ServeConfig,
    TcpPort,
    Tls,
    TlsFiles,
    TlsSelfSigned,
    parse_proxy,
    parse_serve_document,
    parse_target,
    single_target,
)
from .server import AccessRecord, run


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m tsnetpy.serve",
        description="Publish a local web server, a directory, an ASGI application or a TCP port inside the tailnet.",
        epilog="Exit codes: 0 done, 1 failure, 2 usage or configuration, 3 login refused, 4 coordination server out of "
        "reach, 5 state unusable, 6 tailnet port taken, 130 Ctrl-C.",
    )
    result.add_argument(
        "target", nargs="?", help="PORT, HOST:PORT, http(s)://URL, unix:/path, DIRECTORY, or MODULE:APP"
    )
    group = result.add_argument_group("what to serve")
    group.add_argument("--port", type=int, metavar="PORT", help="tailnet port (default 80; 443 with --https)")
    group.add_argument("--https", action="store_true", help="TLS, with a self-made certificate unless --cert is given")
    group.add_argument("--cert", metavar="FILE", help="certificate chain, PEM; implies --https")
    group.add_argument("--key", metavar="FILE", help="key of the certificate, PEM")
    group.add_argument("--tcp", action="store_true", help="hand on raw TCP to TARGET (HOST:PORT, or a port)")
    group.add_argument("--proxy-protocol", type=int, choices=(1, 2), help="with --tcp: put a PROXY header in front")
    group.add_argument("--config", metavar="FILE", help="serve what a ServeConfig document says instead of TARGET")
    group.add_argument("--ssh", action="store_true", help="also run the SSH server on port 22 (needs tsnetpy[ssh])")
    group.add_argument("--no-access-log", action="store_true", help="do not report requests")
    add_node_arguments(result)
    result.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    return result


def serve_config(args: argparse.Namespace) -> ServeConfig:
    """Return what the flags ask for.

    Raises:
        ConfigError: they contradict each other, or name something that is not there.
    """
    tls = _tls(args)
    if args.config:
        if args.target:
            raise ConfigError("both a target and --config", hint="give one of them")
        try:
            text = pathlib.Path(args.config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {args.config}: {error}") from None
        return parse_serve_document(text)
    if not args.target:
        raise ConfigError("nothing to serve", hint="name a target; --help lists the forms")
    if args.tcp:
        target = parse_proxy(args.target)
        backend_port = 0 if target.scheme == "unix" else target.port
        port = args.port or backend_port
        if not port:
            raise ConfigError("no port to serve on", hint="add --port")
        return ServeConfig((TcpPort(port, target.host, backend_port, tls, args.proxy_protocol or 0),))
    if args.proxy_protocol:
        raise ConfigError("--proxy-protocol is for --tcp", hint="HTTP backends get X-Forwarded-For")
    return single_target(parse_target(args.target), args.port or (443 if tls else 80), tls)


def _tls(args: argparse.Namespace) -> Tls | None:
    if bool(args.cert) != bool(args.key):
        raise ConfigError("a certificate without its key", hint="give both --cert and --key")
    if args.cert:
        return TlsFiles(args.cert, args.key)
    return TlsSelfSigned() if args.https else None


def default_hostname(config: ServeConfig) -> str:
    """Return a name for the node after what it serves, ``""`` when that has none."""
    for port in config.ports:
        if isinstance(port, TcpPort):
            continue
        for site in port.sites:
            for mount in site.mounts:
                target = mount.target
                if isinstance(target, DirectoryTarget):
                    return host_label(pathlib.Path(target.path).name)
                if isinstance(target, AsgiTarget) and isinstance(target.app, str):
                    return host_label(target.app.partition(":")[0].rpartition(".")[2])
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the application; return its exit code."""
    args = parser().parse_args(argv)
    configure_logging(args.verbose)
    progress = Progress(as_json=args.json)

    async def body() -> None:
        config = serve_config(args)
        if not args.hostname and not os.environ.get("TS_HOSTNAME"):
            args.hostname = default_hostname(config)
        settings = node_config(args, progress)
        progress.say(
            "joining",
            f"joining {settings.control_url} as {settings.hostname} ...",
            server=settings.control_url,
            hostname=settings.hostname,
        )
        async with Node(settings) as node:
            await _serve(node, config, args, progress)

    try:
        return run_program(body, progress)
    except TsnetError as error:
        code = exit_code(error)
        progress.failed(error, code)
        return code


async def _serve(node: Node, config: ServeConfig, args: argparse.Namespace, progress: Progress) -> None:
    def record(entry: AccessRecord) -> None:
        progress.say("request", entry.line(), **asdict(entry))

    async with anyio.create_task_group() as group:
        if args.ssh:
            await _start_ssh(node, args, group)

        async def serve(*, task_status: anyio.abc.TaskStatus[list[str]]) -> None:
            await run(node, config, log=None if args.no_access_log else record, task_status=task_status)

        found: list[str] = await group.start(serve)
        what = args.target or args.config
        progress.say(
            "running",
            "\n".join(f"serving {what} at {url}" for url in found) + "\nCtrl-C ends it.",
            urls=found,
            target=what,
            name=node.name,
            addresses=list(node.status().addresses),
        )


async def _start_ssh(node: Node, args: argparse.Namespace, group: anyio.abc.TaskGroup) -> None:
    try:
        from tsnetpy import ssh  # features are strangers; only an application like this one puts two together
    except ImportError as error:
        raise ConfigError(f"the SSH server needs {error.name}", hint="pip install 'tsnetpy[ssh]'") from None
    await group.start(ssh.serve, node, ssh.SshConfig(state_dir=args.state))


if __name__ == "__main__":
    sys.exit(main())
