"""MagicDNS without I/O: a table of the tailnet's names, and a server from query bytes to answer bytes.

Start with :mod:`tsnetpy.dns.magic` (the table) and :mod:`tsnetpy.dns.server` (``answer``). There is no forwarder: a
name outside the tailnet is answered SERVFAIL, as the official resolver does when it has no upstream.
"""

from .magic import MAGIC_DNS_V4, MAGIC_DNS_V6, ExtraRecord, MagicHost, MagicTable, resolve_name, reverse_name
from .server import MessageFramer, answer, frame_message

__all__ = [
    "MAGIC_DNS_V4",
    "MAGIC_DNS_V6",
    "ExtraRecord",
    "MagicHost",
    "MagicTable",
    "MessageFramer",
    "answer",
    "frame_message",
    "resolve_name",
    "reverse_name",
]
