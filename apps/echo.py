"""An echo server on tailnet port 7, over TCP and UDP, that knows who is talking.

TS_AUTHKEY=... python apps/echo.py [HOSTNAME]
"""

import sys

import anyio

from tsnetpy import Node, TcpStream, UdpSocket


def who(stream: TcpStream) -> str:
    """Return the login name or the tags of the other end."""
    peer = stream.peer
    if peer is None:
        return "a stranger"
    return peer.login_name or ", ".join(peer.node.tags) or peer.node.short_name


async def echo_tcp(stream: TcpStream) -> None:
    """Send everything back until the other side has said all."""
    print(f"connection from {who(stream)}")
    async with stream:
        try:
            async for chunk in stream:
                await stream.send(chunk)
        except anyio.BrokenResourceError:
            print(f"{who(stream)} hung up")


async def echo_udp(socket: UdpSocket) -> None:
    """Send every datagram back."""
    async for data, (host, port) in socket:
        await socket.sendto(data, host, port)


async def main(hostname: str) -> None:
    """Serve until interrupted."""
    async with Node(hostname) as node:
        listener = await node.create_tcp_listener(7)
        async with anyio.create_task_group() as group, await node.create_udp_socket(7) as socket:
            print(f"echoing on {node.name} port 7 ({', '.join(node.status().addresses)})")
            group.start_soon(echo_udp, socket)
            await listener.serve(echo_tcp)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "echo")
