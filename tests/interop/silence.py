"""A name server for the lab: ``silence.py nxdomain`` knows no name, ``silence.py silent`` never answers."""

import socket
import sys


def main(mode: str) -> None:
    """Serve on every address, port 53."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 53))
        print("ready", flush=True)
        while True:
            query, client = sock.recvfrom(4096)
            print("asked", flush=True)
            if mode == "nxdomain":
                # The question comes back with QR, RD and RA set, and response code 3 (RFC 1035, section 4.1.1).
                end = query.index(0, 12) + 5
                sock.sendto(query[:2] + b"\x81\x83" + b"\0\1\0\0\0\0\0\0" + query[12:end], client)


if __name__ == "__main__":
    main(sys.argv[1])
