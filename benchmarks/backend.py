"""The web server behind the reverse proxies: one thread, one selector, one fixed answer to every GET.

    python -m benchmarks.backend PORT

It knows nothing of HTTP but where a request without a body ends, so that it costs the proxies' processor little.
"""

import selectors
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: text/plain\r\n\r\nhello\n"
END = b"\r\n\r\n"


def serve(port: int) -> None:
    """Answer on 127.0.0.1 until ended."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    selector.register(listener, selectors.EVENT_READ)
    waiting: dict[socket.socket, bytes] = {}
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                selector.register(connection, selectors.EVENT_READ)
                waiting[connection] = b""
                continue
            connection = key.fileobj  # type: ignore[assignment]  # FileDescriptorLike in typeshed; only sockets are registered
            try:
                data = connection.recv(65536)
                requests = waiting[connection] + data
                if count := requests.count(END):
                    connection.sendall(ANSWER * count)
                waiting[connection] = requests[requests.rfind(END) + len(END) :] if count else requests
            except OSError:
                data = b""
            if not data:
                selector.unregister(connection)
                del waiting[connection]
                connection.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
