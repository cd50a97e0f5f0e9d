"""The IP layer of one node and the sockets on it. Start reading at :mod:`tsnetpy.ipstack.stack`."""

from .connections import ACCEPT as ACCEPT
from .errors import AddressInUse as AddressInUse
from .errors import AddressNotAvailable as AddressNotAvailable
from .errors import InvalidAddress as InvalidAddress
from .errors import InvalidOption as InvalidOption
from .errors import InvalidPort as InvalidPort
from .errors import MessageTooLong as MessageTooLong
from .errors import NoRoute as NoRoute
from .errors import NotConnected as NotConnected
from .errors import SendAfterShutdown as SendAfterShutdown
from .errors import SocketError as SocketError
from .errors import TooManySockets as TooManySockets
from .filter import DstRange as DstRange
from .filter import FilterRule as FilterRule
from .filter import IpRange as IpRange
from .filter import PacketFilter as PacketFilter
from .filter import parse_ip_ranges as parse_ip_ranges
from .limits import StackLimits as StackLimits
from .sockets import IcmpSocket as IcmpSocket
from .sockets import Socket as Socket
from .sockets import TcpListenerSocket as TcpListenerSocket
from .sockets import TcpSocket as TcpSocket
from .sockets import UdpSocket as UdpSocket
from .stack import Stack as Stack
