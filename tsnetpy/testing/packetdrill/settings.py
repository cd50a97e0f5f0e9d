"""From a script's options and shell commands to a configured stack. Commands are understood, never executed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from tsnetpy.base.errors import ConfigError
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration
from tsnetpy.tcp import TcpConfig
from tsnetpy.tcp.congestion.registry import create

from .script import Call, Command, Name, Script, Unsupported, Value

_MICROSECOND: Final = 1000
_IGNORED_SYSCTLS: Final = frozenset(
    {
        "tcp_dsack",  # always on
        "tcp_frto",
        "tcp_fack",
        "tcp_early_retrans",
        "tcp_recovery",
        "tcp_reordering",  # 3, as ours
        "tcp_min_tso_segs",  # how Linux cuts its super-segments; byte ranges are compared here
        "tcp_tso_win_divisor",
        "tcp_fastopen",  # no TCP Fast Open here: its options are unknown ones
        "tcp_fastopen_key",
        "tcp_syncookies",
        "tcp_pacing_ss_ratio",
        "tcp_pacing_ca_ratio",
        "tcp_rmem",
        "tcp_wmem",
        "tcp_moderate_rcvbuf",
        "tcp_no_metrics_save",
    }
)
_SYSCTL: Final = re.compile(r"(?:/proc/sys/net/ipv4/|net\.ipv4\.)(\w+)=(\"[^\"]*\"|\S+)")


@dataclass(slots=True, frozen=True)
class Variant:
    """One way to run every script; the expectations are the same for all.

    Attributes:
        name: as the table shows it.
        one_mss: the engine never makes a segment larger than one MSS.
        gro: joined super-segments on the receiving side; False feeds packet by packet.
        wrap: both initial sequence numbers lie just below 2**32.
        ipv6: over IPv6, with an MTU that leaves the same MSS.
    """

    name: str
    one_mss: bool = False
    gro: bool = True
    wrap: bool = False
    ipv6: bool = False


VARIANTS: Final[tuple[Variant, ...]] = (
    Variant("plain"),
    Variant("one-mss", one_mss=True),
    Variant("no-gro", gro=False),
    Variant("isn-wrap", wrap=True),
    Variant("ipv6", ipv6=True),
)


@dataclass(slots=True)
class Settings:
    """How to set up the stack and the runner for one script.

    Attributes:
        config: what connections start with.
        tolerance: by how much a packet may be early or late.
        packet_mss: cut injected data at this many bytes; 0 for not at all.
        ts_tick: length of one tick of our timestamp clock in the script, if it is to be checked.
        notes: what the script wanted and was not done, harmlessly.
    """

    config: TcpConfig
    tolerance: Duration = 4 * MILLISECOND
    packet_mss: int = 0
    ts_tick: Duration = 0
    notes: list[str] = field(default_factory=list)


def linux_like() -> TcpConfig:
    """Return the configuration of a Linux host as the public scripts set it up."""
    return TcpConfig(
        rcv_buf=540_000,
        rcv_buf_max=15 << 20,  # a window scale of 8
        snd_buf=256 << 10,
        snd_buf_max=4 << 20,
        nodelay=False,
        loss_tolerance=False,  # Linux's CUBIC takes every loss for congestion
        pacing=False,  # the scripts replace the queueing discipline that would pace
        delayed_ack=0,  # Linux starts in quick-ack mode, and no public script leaves it
        congestion="cubic" if _has_congestion_control("cubic") else "reno",
        syn_retries=5,
        time_wait=60 * SECOND,
    )


def _has_congestion_control(name: str) -> bool:
    try:
        create(name, 1460, 10)
    except ConfigError:
        return False
    return True


def settings_for(script: Script, variant: Variant, tolerance: Duration = 0) -> Settings:
    """Return what *script* asks for, with at least *tolerance*.

    Raises:
        Unsupported: it asks for something that there is not.
    """
    settings = Settings(linux_like())
    settings.tolerance = max(settings.tolerance, tolerance)
    if variant.one_mss:
        settings.config.max_gso_packets = 1
    for name, value in script.options.items():
        if name == "tolerance_usecs":
            settings.tolerance = max(settings.tolerance, _option_number(name, value) * _MICROSECOND)
        elif name == "tcp_ts_tick_usecs":
            settings.ts_tick = _option_number(name, value) * _MICROSECOND
        elif name == "mss":
            settings.packet_mss = _option_number(name, value)
        elif name in ("ip_version", "mtu", "local_ip", "remote_ip", "define", "D"):
            if name in ("ip_version", "mtu"):
                raise Unsupported(f"option --{name}")
        else:
            raise Unsupported(f"option --{name}")
    for line in command_lines(script.init):
        _apply(line, settings)
    _from_calls(script, settings)
    return settings


def _option_number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise Unsupported(f"option --{name}={value}")
    return int(value)


def command_lines(text: str) -> Iterator[str]:
    """Yield the single commands of a shell snippet."""
    joined = text.replace("\\\n", " ")
    for line in re.split(r"[\n;]", joined):
        command = " ".join(line.split())
        if command and not command.startswith("#"):
            yield command


def _apply(command: str, settings: Settings) -> None:
    if command.endswith("defaults.sh"):
        return
    found = _SYSCTL.findall(command)
    if found:
        for name, value in found:
            _sysctl(name, value.strip('"'), settings)
    elif command.startswith("ethtool") and "gso off" in command:
        settings.config.max_gso_packets = 1
    else:
        raise Unsupported(f"command {command[:60]!r}")


def _sysctl(name: str, value: str, settings: Settings) -> None:
    config = settings.config
    if name == "tcp_timestamps":
        config.timestamps = value != "0"
    elif name == "tcp_sack":
        config.sack = value != "0"
    elif name == "tcp_window_scaling":
        config.window_scaling = value != "0"
    elif name == "tcp_congestion_control":
        if not _has_congestion_control(value):
            raise Unsupported(f"congestion control {value!r}")
        config.congestion = value
    elif name == "tcp_ecn":
        if value != "0":
            raise Unsupported("ECN")
    elif name == "tcp_slow_start_after_idle":
        settings.notes.append(f"{name}={value} left to the engine")
    elif name not in _IGNORED_SYSCTLS:
        raise Unsupported(f"sysctl {name}")


def _from_calls(script: Script, settings: Settings) -> None:
    """Take the sizes that the script sets by socket option: an engine here learns them at birth."""
    for event in script.events:
        call = event.action
        if not isinstance(call, Call) or call.name != "setsockopt" or len(call.arguments) < 4:
            continue
        option = name_of(call.arguments[2])
        if option not in ("SO_SNDBUF", "SO_RCVBUF"):
            continue
        value = _single(call.arguments[3])
        if option == "SO_SNDBUF":
            # Linux doubles the number and charges about one and a half bytes for each byte of payload.
            size = value * 4 // 3
            settings.config = replace(settings.config, snd_buf=size, snd_buf_max=size)
        else:
            settings.config = replace(settings.config, rcv_buf=value, rcv_buf_max=max(value, 65536))


def name_of(value: Value) -> str:
    """Return the symbol that *value* is, or ``""``."""
    return value.parts[0] if isinstance(value, Name) and len(value.parts) == 1 else ""


def _single(value: Value) -> int:
    inner = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(inner, int):
        raise Unsupported("a socket option that is no number")
    return inner


def max_segment(script: Script) -> int:
    """Return the TCP_MAXSEG that the script sets, or 0."""
    for event in script.events:
        call = event.action
        if not isinstance(call, Call) or call.name != "setsockopt" or len(call.arguments) < 4:
            continue
        if name_of(call.arguments[2]) == "TCP_MAXSEG":
            return _single(call.arguments[3])
    return 0


def mid_script(command: Command) -> str:
    """Return what a command between events means: ``"dead"``, ``"alive"`` (the way out), or ``""`` for nothing.

    Raises:
        Unsupported: it means something else.
    """
    meaning = ""
    for line in command_lines(command.text):
        if line.startswith("tc qdisc") and "pfifo" in line:
            meaning = "dead" if line.endswith("limit 0") else "alive"
        elif line.startswith("tc qdisc del") or "sysctl_restore" in line:
            continue
        elif line.startswith("grep") and "/proc/net/tcp" in line:
            continue  # whether the listener is still there; the packets that follow show it
        else:
            raise Unsupported(f"command {line[:60]!r}")
    return meaning
