"""Hello from inside the tailnet: TS_AUTHKEY=... python apps/hello_web.py, then open http://hello/ on another node."""

import anyio

from tsnetpy import Node, serve


async def main() -> None:
    async with Node("hello") as node:
        await serve.run(node, serve.single_target(serve.TextTarget(f"Hello from {node.name}\n"), 80))


if __name__ == "__main__":
    anyio.run(main)
