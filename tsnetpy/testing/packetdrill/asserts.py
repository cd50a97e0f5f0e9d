"""The Python of ``%{ }%`` blocks: asserts over the counters of a connection, evaluated by hand.

Nothing is ever given to ``exec``: scripts come from elsewhere. The ``tcpi_`` names are those of Linux's ``tcp_info``.
"""

import ast
import operator
import textwrap
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from tsnetpy.base.instant import Duration
from tsnetpy.tcp import Connection

from .script import Unsupported

Number: TypeAlias = int | float | str
_MICROSECOND: Final = 1000
_INFINITE_SSTHRESH: Final = 0x7FFFFFFF

CONSTANTS: Final[Mapping[str, int]] = {
    "TCP_CA_Open": 0,
    "TCP_CA_Disorder": 1,
    "TCP_CA_CWR": 2,
    "TCP_CA_Recovery": 3,
    "TCP_CA_Loss": 4,
    "TCPI_OPT_TIMESTAMPS": 1,
    "TCPI_OPT_SACK": 2,
    "TCPI_OPT_WSCALE": 4,
    "TCPI_OPT_ECN": 8,
    "TCPI_OPT_SYN_DATA": 32,
}

_CA_STATES: Final[Mapping[str, int]] = {"open": 0, "disorder": 1, "recovery": 3, "loss": 4}

_BINARY: Final[Mapping[type[ast.operator], Callable[[int, int], int | float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_COMPARE: Final[Mapping[type[ast.cmpop], Callable[[Number, Number], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def check(text: str, names: Mapping[str, int]) -> str | None:
    """Return the first assert of *text* that fails, with the values that it saw, or ``None`` if all hold.

    Raises:
        Unsupported: *text* holds anything but asserts over known names.
    """
    try:
        tree = ast.parse(textwrap.dedent(text.strip("\n")).strip())
    except SyntaxError as error:
        raise Unsupported(f"Python block: {error.msg}") from error
    for statement in tree.body:
        if not isinstance(statement, ast.Assert):
            raise Unsupported(f"Python statement {type(statement).__name__}")
        if not _evaluate(statement.test, names):
            seen = sorted({node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)} - set(CONSTANTS))
            values = ", ".join(f"{name} = {names[name]}" for name in seen)
            return f"assert {ast.unparse(statement.test)}: {values}"
    return None


def _evaluate(node: ast.expr, names: Mapping[str, int]) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.Name):
        if node.id in CONSTANTS:
            return CONSTANTS[node.id]
        if node.id not in names:
            raise Unsupported(f"{node.id} is not offered by the engine")
        return names[node.id]
    if isinstance(node, ast.BoolOp):
        results = [bool(_evaluate(value, names)) for value in node.values]
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        value = _evaluate(node.operand, names)
        if isinstance(node.op, ast.Not):
            return not value
        if not isinstance(value, str):
            return -value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _evaluate(node.left, names), _evaluate(node.right, names)
        if isinstance(left, int) and isinstance(right, int):
            return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.Compare):
        left = _evaluate(node.left, names)
        for op, right_node in zip(node.ops, node.comparators):
            right = _evaluate(right_node, names)
            if type(op) not in _COMPARE:
                raise Unsupported(f"Python operator {type(op).__name__}")
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True
    raise Unsupported(f"Python expression {ast.unparse(node)[:40]!r}")


def tcp_info(connection: Connection) -> dict[str, int]:
    """Return what the engine can say of *connection* under the names of ``tcp_info``.

    Windows are in packets, times in microseconds. A script that asks for any other counter is skipped.
    """
    info = connection.info()
    mss = max(info.mss, 1)
    return {
        "tcpi_snd_cwnd": info.cwnd // mss,
        "tcpi_snd_ssthresh": _INFINITE_SSTHRESH if info.ssthresh >= 1 << 30 else info.ssthresh // mss,
        "tcpi_ca_state": _CA_STATES[info.recovery],
        "tcpi_snd_mss": info.mss,
        "tcpi_rtt": _microseconds(info.srtt),
        "tcpi_rttvar": _microseconds(info.rttvar),
        "tcpi_min_rtt": _microseconds(info.min_rtt),
        "tcpi_rto": _microseconds(info.rto),
        "tcpi_unacked": _packets(info.bytes_in_flight, mss),
        "tcpi_total_retrans": info.retransmits,
        "tcpi_bytes_acked": info.bytes_out - info.bytes_in_flight,
        "tcpi_bytes_received": info.bytes_in,
        "tcpi_options": info.timestamps * 1 | info.sack * 2 | info.window_scaling * 4,
        "tcpi_advmss": connection.tcb.config.mss,
        "tcpi_sacked": _packets(info.sacked_bytes, mss),
        "tcpi_lost": _packets(info.lost_bytes, mss),
        "tcpi_retrans": _packets(info.retransmitted_in_flight, mss),
        "tcpi_reordering": info.reordering,
        "tcpi_reord_seen": info.reorder_seen,
        "tcpi_probes": info.probes,
        "tcpi_backoff": info.backoff,
        "tcpi_rcv_mss": info.rcv_mss,
    }


def _microseconds(span: Duration) -> int:
    return span // _MICROSECOND


def _packets(size: int, mss: int) -> int:
    return -(-size // mss)
