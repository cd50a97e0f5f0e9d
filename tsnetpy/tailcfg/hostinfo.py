"""What a node says about the host it runs on and the network it sees."""

import msgspec

from ._struct import Message


class Service(Message, frozen=True, kw_only=True):
    """A service that a node offers to peers, among them its PeerAPI ports (``peerapi4``, ``peerapi6``)."""

    proto: str = ""
    port: int = 0
    description: str = ""


class NetInfo(Message, frozen=True, kw_only=True):
    """The result of a network check. Optional booleans are ``None`` when unknown (Go's ``opt.Bool``)."""

    mapping_varies_by_dest_ip: bool | None = None
    hair_pinning: bool | None = None
    working_ipv6: bool | None = None
    os_has_ipv6: bool | None = None
    working_udp: bool | None = None
    working_icmpv4: bool | None = None
    have_port_map: bool = False
    upnp: bool | None = None
    pmp: bool | None = None
    pcp: bool | None = None
    preferred_derp: int = 0
    """Home DERP region, 0 for none."""
    link_type: str = ""
    derp_latency: dict[str, float] = msgspec.field(default_factory=dict)
    """``"<region>-v4"`` or ``"<region>-v6"`` to seconds."""
    firewall_mode: str = ""


class Hostinfo(Message, frozen=True, kw_only=True):
    """A node's description of itself."""

    ipn_version: str = ""
    frontend_log_id: str = ""
    backend_log_id: str = ""
    os: str = ""
    os_version: str = ""
    container: bool | None = None
    env: str = ""
    distro: str = ""
    distro_version: str = ""
    distro_code_name: str = ""
    app: str = ""
    desktop: bool | None = None
    package: str = ""
    device_model: str = ""
    hostname: str = ""
    shields_up: bool = False
    sharee_node: bool = False
    no_logs_no_support: bool = False
    wire_ingress: bool = False
    ingress_enabled: bool = False
    allows_update: bool = False
    machine: str = ""
    go_arch: str = ""
    go_arch_var: str = ""
    go_version: str = ""
    routable_ips: tuple[str, ...] = ()
    """Advertised routes; an exit node adds ``0.0.0.0/0`` and ``::/0``."""
    request_tags: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    net_info: NetInfo | None = None
    ssh_host_keys: tuple[str, ...] = msgspec.field(default=(), name="sshHostKeys")
    """``authorized_keys`` lines; non-empty means that the node's SSH server is on."""
    cloud: str = ""
    userspace: bool | None = None
    userspace_router: bool | None = None
    app_connector: bool | None = None
    services_hash: str = ""
    exit_node_id: str = ""
    peer_relay: bool = False
    state_encrypted: bool | None = None
