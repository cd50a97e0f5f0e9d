"""The real underlay: one UDP port, DERP connections, and disco choosing between them per peer."""

from .underlay import MagicSock

__all__ = ["MagicSock"]
