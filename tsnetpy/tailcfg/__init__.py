"""The control plane's JSON messages as typed, immutable structs, and the network map they add up to.

Start with :mod:`.codec` (how JSON becomes structs) and :mod:`.netmap` (what a node knows about its tailnet).
"""

from .capver import CAPABILITY_VERSION
from .codec import decode, encode
from .derpmap import DERPMap, DERPNode, DERPRegion
from .dns import DNSConfig, DNSRecord, Resolver
from .filter import CapGrant, FilterRule, NetPortRange, PortRange
from .hostinfo import Hostinfo, NetInfo, Service
from .mapping import EndpointType, MapRequest, MapResponse, PingRequest
from .netmap import NetMap
from .node import Node, PeerChange, UserProfile
from .register import RegisterAuth, RegisterRequest, RegisterResponse
from .ssh import SSHAction, SSHPolicy, SSHPrincipal, SSHRule

__all__ = [
    "CAPABILITY_VERSION",
    "CapGrant",
    "DERPMap",
    "DERPNode",
    "DERPRegion",
    "DNSConfig",
    "DNSRecord",
    "EndpointType",
    "FilterRule",
    "Hostinfo",
    "MapRequest",
    "MapResponse",
    "NetInfo",
    "NetMap",
    "NetPortRange",
    "Node",
    "PeerChange",
    "PingRequest",
    "PortRange",
    "RegisterAuth",
    "RegisterRequest",
    "RegisterResponse",
    "Resolver",
    "SSHAction",
    "SSHPolicy",
    "SSHPrincipal",
    "SSHRule",
    "Service",
    "UserProfile",
    "decode",
    "encode",
]
