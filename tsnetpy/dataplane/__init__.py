"""The data plane of one node: WireGuard, packet filter, virtual NIC and IP stack in the right order, without I/O."""

from tsnetpy.wg import EndpointSeen as EndpointSeen
from tsnetpy.wg import PeerHandshake as PeerHandshake
from tsnetpy.wg import PeerInfo as PeerInfo
from tsnetpy.wg import UnknownPeerInitiation as UnknownPeerInitiation
from tsnetpy.wg import UnknownSession as UnknownSession

from .config import DataPlaneConfig as DataPlaneConfig
from .config import PeerSpec as PeerSpec
from .plane import DataPlane as DataPlane
from .stats import DataPlaneStats as DataPlaneStats
from .tsmp import FlowRejected as FlowRejected
from .tsmp import TsmpPong as TsmpPong
