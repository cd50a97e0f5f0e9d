"""A web server of this machine, on the tailnet, with the caller's identity in its request headers.

TS_AUTHKEY=... python apps/reverse_proxy.py HOSTNAME http://127.0.0.1:3000
"""

import sys

import anyio

from tsnetpy import Node, serve


async def main(hostname: str, backend: str) -> None:
    """Proxy until interrupted."""
    async with Node(hostname) as node, anyio.create_task_group() as group:
        for url in await group.start(serve.run, node, serve.single_target(serve.parse_target(backend), 80)):
            print(f"{url} -> {backend}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    anyio.run(main, sys.argv[1], sys.argv[2])
