"""Header codecs of the tunnel's inside: IPv4, IPv6, TCP, UDP, ICMP, ICMPv6, TSMP, and the Internet checksum.

These are value types for the cold paths (errors, tests, tracing). The per-packet loops of :mod:`tsnetpy.nic` unpack
with one precompiled ``struct`` instead and share only the constants and the checksum.
"""
