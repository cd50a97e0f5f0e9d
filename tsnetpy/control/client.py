"""The control client: one task that keeps a node registered and its network map current.

:meth:`ControlClient.run` dials, registers, opens the map stream and publishes what comes in two cells, ``netmap`` and
``status``. Trouble on the way means another attempt after a pause; only a server's refusal ends it, with
:exc:`~tsnetpy.base.errors.AuthError`. What the node wants to tell (endpoints, home DERP, host info) goes into a report
that is sent when it differs from what was sent last.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias, final

import anyio
import msgspec

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import Entropy, SystemEntropy
from tsnetpy.base.errors import AuthError, ControlError, DecodeError
from tsnetpy.base.instant import SECOND
from tsnetpy.base.keys import DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic
from tsnetpy.crypto import dh
from tsnetpy.runtime.clock import wall_ns
from tsnetpy.runtime.http2 import Http2Client, Http2Response
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.tls import Verify
from tsnetpy.runtime.watch import Watch
from tsnetpy.tailcfg.capver import CAPABILITY_VERSION
from tsnetpy.tailcfg.codec import decode, encode
from tsnetpy.tailcfg.hostinfo import Hostinfo, NetInfo
from tsnetpy.tailcfg.mapping import EndpointType, MapRequest, MapResponse
from tsnetpy.tailcfg.netmap import NetMap
from tsnetpy.tailcfg.register import RegisterResponse
from tsnetpy.tailcfg.times import to_wall_ns
from tsnetpy.ts2021.framing import MapFrameReader
from tsnetpy.ts2021.login import LoggedIn, LoginMachine, NeedsLogin, Refused, WaitAndSend, logout_request
from tsnetpy.ts2021.netmap import Applied, MapSession

from .backoff import ControlBackoff
from .dial import (
    TRANSPORT_ERRORS,
    Connect,
    NoiseDialer,
    ServerUrl,
    close_quietly,
    connect_tcp,
    describe,
    fetch_server_key,
)
from .ping import answer_ping
from .status import ControlState, ControlStatus

_log = logging.getLogger(__name__)

WATCHDOG_SECONDS: Final = 120.0
"""A map stream that is silent for so long is dead; servers send a keep-alive every minute."""
REQUEST_SECONDS: Final = 60.0
LOGOUT_SECONDS: Final = 5.0
FOLLOWUP_SECONDS: Final = 600.0
"""How long one request waits for a person at the login page; then it is asked again, on a new connection."""
REPORT_DELAY_SECONDS: Final = 0.05
"""Endpoints and net info change together; one report for both spares every peer an update."""
MAX_REPORT_FAILURES: Final = 5
_MAX_ENDPOINTS: Final = 32
_MAX_SLEEP_SECONDS: Final = 300.0
_MAX_PINGS: Final = 4

SaveKeys: TypeAlias = Callable[[NodePrivate, NodePublic], None]
"""Stores an accepted node key and the public key before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """What a control client needs to know."""

    server_url: str
    machine_key: MachinePrivate
    hostinfo: Hostinfo
    node_key: NodePrivate | None = None
    """The stored key, or ``None`` for a first login."""
    old_node_key: NodePublic = field(default_factory=NodePublic.zero)
    """The stored key's predecessor."""
    disco_key: DiscoPublic = field(default_factory=DiscoPublic.zero)
    auth_key: str = field(default="", repr=False)
    """Pre-authentication key; without one, a login is interactive."""
    ephemeral: bool = False
    save_keys: SaveKeys | None = None
    """Called before the first poll with a newly accepted key."""
    verify: Verify = "system"
    """How the ``https:`` certificate for ``/key`` is checked."""
    connect: Connect = connect_tcp
    version: int = CAPABILITY_VERSION
    watchdog_s: float = WATCHDOG_SECONDS
    """Silence after which the map stream counts as dead."""


@dataclass(frozen=True, slots=True)
class _Report:
    """What the server should know of this node."""

    hostinfo: Hostinfo
    endpoints: tuple[str, ...]
    endpoint_types: tuple[int, ...]
    disco_key: DiscoPublic


class _NodeUnknown(Exception):
    """The server has no node with this key any more: register again."""


class _KeyExpired(Exception):
    """This node's key has expired: log in again."""


@final
class ControlClient:
    """See the module's text.

    Args:
        config: fixed for the client's life.
        entropy: for keys and pauses.
    """

    def __init__(self, config: ControlConfig, *, entropy: Entropy | None = None) -> None:
        self._config = config
        self._entropy = entropy if entropy is not None else SystemEntropy()
        self._url = ServerUrl.parse(config.server_url)
        self._dialer = NoiseDialer(
            self._url,
            machine_key=config.machine_key,
            version=config.version,
            entropy=self._entropy,
            connect=config.connect,
        )
        self._server_key: MachinePublic | None = None
        self._node_key = config.node_key
        self._old_node_key = config.old_node_key
        self._registered = False
        self._force_new_key = False
        self._logged_out = False
        self._machine: LoginMachine | None = None  # outlives a connection: a person may be at its login URL
        self._live: NetMap | None = None
        self._backoff = ControlBackoff(self._entropy)
        self._report = _Report(config.hostinfo, (), (), config.disco_key)
        self._reported: _Report | None = None
        self._report_kick = Kick()
        self._http: Http2Client | None = None
        self._answered: anyio.Event | None = None  # set by the answer to a registration that is on its way
        self._pings = 0
        self.netmap: Watch[NetMap | None] = Watch(None)
        """The latest network map; it stays while the server is away."""
        self.status: Watch[ControlStatus] = Watch(ControlStatus())
        self.user_login = ""
        """Login name of the account, once registered."""

    @property
    def node_key(self) -> NodePrivate | None:
        """The node key in use; it changes when an expired one is replaced, always before the map that shows it."""
        return self._node_key

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the node registered and the map current, until cancelled or after :meth:`logout`.

        Raises:
            AuthError: the server refuses this node; another attempt would end the same.
        """
        task_status.started()
        while True:
            reason, hint = "", ""
            try:
                await self._connected(self._session)
            except _NodeUnknown:
                _log.info("the server does not know this node's key; registering again")
                self._registered = False
                reason = "the server does not know this node; registering again"
            except _KeyExpired:
                self._registered = False
                self._force_new_key = True
                reason = "the node key has expired; logging in again"
            except AuthError as error:
                self.status.set(ControlStatus(ControlState.REFUSED, message=str(error), hint=error.hint))
                raise
            except ControlError as error:
                reason, hint = str(error), error.hint
            except TRANSPORT_ERRORS as error:
                reason = f"the connection to the coordination server ended: {describe(error)}"
            if self._logged_out:
                return
            await self._pause(reason, hint)

    def update_endpoints(self, endpoints: Sequence[tuple[Endpoint, EndpointType]]) -> None:
        """Tell the server where this node can be reached; sent only if it differs from before."""
        kept = endpoints[:_MAX_ENDPOINTS]
        self._change_report(
            replace(
                self._report,
                endpoints=tuple(str(endpoint) for endpoint, _ in kept),
                endpoint_types=tuple(int(kind) for _, kind in kept),
            )
        )

    def update_netinfo(self, netinfo: NetInfo) -> None:
        """Tell the server the result of a network check (home DERP region and more)."""
        self.update_hostinfo(msgspec.structs.replace(self._report.hostinfo, net_info=netinfo))

    def update_hostinfo(self, hostinfo: Hostinfo) -> None:
        """Tell the server about services, SSH host keys, routes; start from :attr:`hostinfo`."""
        self._change_report(replace(self._report, hostinfo=hostinfo))

    def set_disco_key(self, key: DiscoPublic) -> None:
        """Tell the server the disco key of this process."""
        self._change_report(replace(self._report, disco_key=key))

    @property
    def hostinfo(self) -> Hostinfo:
        """What the server is told about this host."""
        return self._report.hostinfo

    async def request(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float = REQUEST_SECONDS
    ) -> tuple[int, bytes]:
        """Send a request over the present Noise connection (SSH check mode, DNS challenges); return status and body.

        Raises:
            ControlError: there is no connection, it ended, or the time is up.
        """
        http = self._http
        if http is None:
            raise ControlError("not connected to the coordination server")
        try:
            with anyio.fail_after(timeout_s):
                response, answer = await http.request(method, path, body=body)
        except TRANSPORT_ERRORS as error:
            raise ControlError(f"request to the coordination server failed: {describe(error)}") from error
        return response.status, answer

    async def logout(self, *, timeout_s: float = LOGOUT_SECONDS) -> bool:
        """Make the server expire this node's key (and delete an ephemeral node); best effort.

        Works while :meth:`run` is connected, and after it has ended over a connection of its own.

        Returns:
            True if the server confirmed.
        """
        deadline = anyio.current_time() + timeout_s
        if self._answered is not None:
            # The server may take us in at any moment, and would then wait for a node that is gone.
            with anyio.move_on_at(deadline):
                await self._answered.wait()
        node_key = self._node_key
        if node_key is None or not (self._registered or self._config.node_key is not None):
            return False
        body = encode(
            logout_request(self._config.version, _public(node_key), self._old_node_key, self._report.hostinfo)
        )
        confirmed: list[bool] = []

        async def send(http: Http2Client) -> None:
            response, answer = await http.request("POST", "/machine/register", body=body)
            confirmed.append(response.status == 200 and not decode(answer, RegisterResponse).error)

        with anyio.move_on_at(deadline):
            try:
                if self._http is not None:
                    await send(self._http)
            except TRANSPORT_ERRORS as error:
                _log.debug("logout over the open connection failed: %s", describe(error))
            try:
                if not confirmed:
                    await self._connected(send)
            except (*TRANSPORT_ERRORS, ControlError) as error:
                _log.debug("logout failed: %s", describe(error))
        self._registered = False
        done = bool(confirmed) and confirmed[0]
        if done:
            self._logged_out = True  # the stream will now show an expired key, which must not log in again
            self.status.set(ControlStatus(ControlState.LOGGED_OUT))
        return done

    # -- one connection ------------------------------------------------------------------------------------------

    async def _connected(self, work: Callable[[Http2Client], Awaitable[None]]) -> None:
        """Dial, run *work* over the connection, close it; *work*'s exception passes through as it is."""
        if self._server_key is None:
            self._server_key = await fetch_server_key(
                self._url, version=self._config.version, verify=self._config.verify, connect=self._config.connect
            )
        try:
            noise = await self._dialer.dial(self._server_key)
        except ControlError:
            self._server_key = None  # a reinstalled server has another key; ask again next time
            raise
        http = Http2Client(noise, authority=self._url.authority)
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                await group.start(http.run)
                try:
                    await work(http)
                except Exception as error:  # kept out of the task group, which would wrap it
                    failure = error
                group.cancel_scope.cancel()
        finally:
            await close_quietly(noise)  # cancelled before it began, run() closes nothing
        if failure is not None:
            raise failure

    async def _session(self, http: Http2Client) -> None:
        self._http = http
        try:
            if not self._registered:
                await self._login(http)
            failure: Exception | None = None
            async with anyio.create_task_group() as group:

                async def report() -> None:
                    nonlocal failure
                    try:
                        await self._report_loop(http)
                    except _NodeUnknown as error:
                        # A stream stays open when its node is deleted; a report is how one hears of it.
                        failure = error
                        group.cancel_scope.cancel()

                group.start_soon(report)
                try:
                    await self._poll(http, group)
                except Exception as error:  # as above
                    failure = error
                group.cancel_scope.cancel()
            if failure is not None:
                raise failure
        finally:
            self._http = None

    # -- registration --------------------------------------------------------------------------------------------

    async def _login(self, http: Http2Client) -> None:
        machine = self._machine
        if machine is None:
            machine = self._machine = self._new_machine()
        waits = ControlBackoff(self._entropy)
        while True:
            request = machine.request()
            limit = REQUEST_SECONDS
            if request.followup:
                limit = FOLLOWUP_SECONDS
                self.status.set_if_changed(ControlStatus(ControlState.NEEDS_LOGIN, auth_url=request.followup))
            answered = self._answered = None if request.followup else anyio.Event()
            try:
                with anyio.fail_after(limit):
                    response, body = await http.request(
                        "POST", "/machine/register", headers=[("ts-lb", request.node_key.text())], body=encode(request)
                    )
            finally:
                self._answered = None
                if answered is not None:
                    answered.set()
            if response.status == 429:
                await anyio.sleep(self._retry_after(response))
                continue
            if response.status == 200:
                result = machine.receive(_decode_register(body))
            else:
                result = machine.receive_status(response.status, body[:200].decode("utf-8", "replace"))
            if isinstance(result, LoggedIn):
                self._accept(machine, result)
                return
            if isinstance(result, Refused):
                self._machine = None
                raise AuthError(f"the coordination server refuses this node: {result.reason}", hint=result.hint)
            if isinstance(result, NeedsLogin):
                _log.info("login needed; the URL is in the status")
            elif isinstance(result, WaitAndSend):
                if response.status != 200:
                    raise ControlError(f"registration failed: {result.reason}")
                await anyio.sleep(waits.next_pause() / SECOND)
            elif result.new_key:
                self.status.set(ControlStatus(ControlState.EXPIRED, message="the node key has expired"))

    def _new_machine(self) -> LoginMachine:
        return LoginMachine(
            version=self._config.version,
            node_private=self._node_key,
            old_node_public=self._old_node_key,
            auth_key=self._config.auth_key,
            hostinfo=self._report.hostinfo,
            ephemeral=self._config.ephemeral,
            entropy=self._entropy,
            plain_http=self._url.is_plain,
            force_new_key=self._force_new_key,
        )

    def _accept(self, machine: LoginMachine, result: LoggedIn) -> None:
        self._node_key = machine.node_private
        self._old_node_key = machine.old_node_public
        self._machine = None
        self._registered = True
        self._force_new_key = False
        self._reported = None
        self.user_login = result.login.login_name
        if self._config.save_keys is not None:
            self._config.save_keys(self._node_key, self._old_node_key)
        if not result.machine_authorized:
            self.status.set(ControlStatus(ControlState.NEEDS_MACHINE_AUTH))

    def _retry_after(self, response: Http2Response) -> float:
        """Return how long a 429 asks to wait: seconds or an HTTP date, otherwise 5-10 s."""
        text = response.header("retry-after")
        if text.isascii() and text.isdigit():
            return min(float(text), _MAX_SLEEP_SECONDS)
        try:
            ahead = (to_wall_ns(parsedate_to_datetime(text)) - wall_ns()) / SECOND
            return min(max(ahead, 0.0), _MAX_SLEEP_SECONDS)
        except ValueError:
            return 5 + 5 * self._entropy.u32() / 2**32

    # -- the map stream ------------------------------------------------------------------------------------------

    async def _poll(self, http: Http2Client, group: anyio.abc.TaskGroup) -> None:
        node_key = self._node_key
        if node_key is None:
            raise ControlError("polling before registration")
        report = self._report
        body = encode(self._map_request(node_key, report, stream=True))
        session = MapSession()
        self._live = None
        reader = MapFrameReader(compressed=True)
        with anyio.fail_after(self._config.watchdog_s) as watchdog:
            async with http.stream(
                "POST", "/machine/map", headers=[("ts-lb", _public(node_key).text())], body=body
            ) as response:
                await _check_map_status(response)
                while True:
                    try:
                        data = await response.receive()
                    except anyio.EndOfStream:
                        raise ControlError("the server ended the map stream") from None
                    for message in reader.feed(data):
                        watchdog.deadline = anyio.current_time() + self._config.watchdog_s
                        applied = session.apply(decode(message, MapResponse), wall_ns())
                        self._publish(applied)
                        if applied.ping is not None and self._pings < _MAX_PINGS:
                            self._pings += 1
                            group.start_soon(self._answer_ping, applied, http)
                        if applied.sleep_seconds > 0:
                            pause = min(applied.sleep_seconds, _MAX_SLEEP_SECONDS)
                            watchdog.deadline += pause
                            await anyio.sleep(pause)

    def _publish(self, applied: Applied) -> None:
        if applied.dial_plan is not None:
            self._dialer.dial_plan = applied.dial_plan
        if applied.pop_browser_url:
            _log.info("the server asks to show a page")
        netmap = applied.netmap
        if netmap is not None:
            self._backoff.reset()
            self._live = netmap
            self.netmap.set(netmap)
        current = self._live
        if current is None or self._logged_out:
            return
        # Checked with every message, keep-alives included: a stream outlives the key it was opened with.
        if current.self_node.is_expired(wall_ns()):
            self.status.set(ControlStatus(ControlState.EXPIRED, message="the node key has expired"))
            raise _KeyExpired
        if netmap is not None:
            authorised = netmap.self_node.machine_authorized
            state = ControlState.RUNNING if authorised else ControlState.NEEDS_MACHINE_AUTH
            self.status.set_if_changed(ControlStatus(state))

    async def _answer_ping(self, applied: Applied, http: Http2Client) -> None:
        try:
            if applied.ping is not None:
                trouble = await answer_ping(
                    applied.ping, http, connect=self._config.connect, verify=self._config.verify
                )
                if trouble:
                    _log.debug("%s", trouble)
        finally:
            self._pings -= 1

    # -- reports -------------------------------------------------------------------------------------------------

    def _change_report(self, report: _Report) -> None:
        if report != self._report:
            self._report = report
            self._report_kick.kick()

    async def _report_loop(self, http: Http2Client) -> None:
        """Send the report whenever it differs from the last one the server took ("lite update")."""
        failures = ControlBackoff(self._entropy)
        while True:
            report, node_key = self._report, self._node_key
            if node_key is not None and report != self._reported and not report.disco_key.is_zero:
                body = encode(self._map_request(node_key, report, stream=False))
                try:
                    with anyio.fail_after(REQUEST_SECONDS):
                        response, _ = await http.request(
                            "POST", "/machine/map", headers=[("ts-lb", _public(node_key).text())], body=body
                        )
                except TRANSPORT_ERRORS:
                    return  # the map stream on the same connection notices too
                if response.status == 200:
                    self._reported = report
                    failures.reset()
                elif response.status == 404:
                    raise _NodeUnknown
                elif failures.attempts >= MAX_REPORT_FAILURES:
                    _log.warning("the server answers %d to reports", response.status)
                    return
                else:
                    await anyio.sleep(failures.next_pause() / SECOND)
                continue
            await self._report_kick.wait()
            await anyio.sleep(REPORT_DELAY_SECONDS)

    def _map_request(self, node_key: NodePrivate, report: _Report, *, stream: bool) -> MapRequest:
        return MapRequest(
            version=self._config.version,
            compress="zstd",
            keep_alive=True,
            node_key=_public(node_key),
            disco_key=report.disco_key,
            stream=stream,
            omit_peers=not stream,
            hostinfo=report.hostinfo,
            endpoints=report.endpoints,
            endpoint_types=report.endpoint_types,
            debug_flags=("netstack",),
        )

    async def _pause(self, reason: str, hint: str) -> None:
        pause = self._backoff.next_pause()
        _log.debug("%s; next attempt in %.1f s", reason, pause / SECOND)
        self.status.set(
            ControlStatus(ControlState.CONNECTING, message=reason, hint=hint, attempts=self._backoff.attempts)
        )
        await anyio.sleep(pause / SECOND)


def _public(key: NodePrivate) -> NodePublic:
    return NodePublic(dh.public_key(key.raw))


def _decode_register(body: bytes) -> RegisterResponse:
    try:
        return decode(body, RegisterResponse)
    except DecodeError as error:
        raise ControlError("the server's registration answer cannot be read") from error


async def _check_map_status(response: Http2Response) -> None:
    if response.status == 200:
        return
    text = (await response.read(64 * 1024))[:200].decode("utf-8", "replace").strip()
    if response.status == 404:
        raise _NodeUnknown(text)
    raise ControlError(f"the server answers {response.status} to the map request: {text}")
