"""From a policy and the list of devices to what each device enforces: packet filter, SSH policy, visible peers.

Every rule is cut down to the device that gets it: only destinations that are its own, so that a device learns nothing
about rules between others. Source: control protocol reference, sections 7, 8 and 11.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tsnetpy.base.addr import IpBytes, format_ip

from .policy import Grant, Kind, Policy, Selector, SshRule

Json: TypeAlias = dict[str, object]
"""A JSON object on its way out."""

TAILNET_RANGES: Final = ("100.64.0.0-100.115.91.255", "100.115.94.0-100.127.255.255", "fd7a:115c:a1e0::/48")
"""What ``*`` as a source means: the tailnet, without ChromeOS's range, and nothing else of the internet."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a policy can tell a device by."""

    node_id: int
    login: str
    """Its user's login name; a tagged device has none, whatever this says."""
    tags: frozenset[str]
    addresses: tuple[IpBytes, ...]


def owns_tag(policy: Policy, login: str, tag: str) -> bool:
    """Tell whether the user *login* may give *tag* to a device."""
    person = Subject(0, login, frozenset(), ())
    return any(_picks(owner, person) for owner in policy.tag_owners.get(tag, ()))


def _picks(selector: Selector, subject: Subject) -> bool:
    """Tell whether *selector* picks *subject*. ``SELF`` depends on the other end and is settled by the caller."""
    kind = selector.kind
    if kind in (Kind.ANY, Kind.DANGER_ALL):
        return True
    if kind is Kind.TAG:
        return not subject.tags.isdisjoint(selector.names)
    if kind is Kind.TAGGED:
        return bool(subject.tags)
    if kind is Kind.PREFIX:
        prefix = selector.prefix
        return prefix is not None and any(prefix.contains(ip) for ip in subject.addresses)
    if subject.tags:
        return False  # a tag replaces the user
    if kind is Kind.USERS:
        # "name@" is how a policy writes a login name that is no e-mail address.
        return subject.login in selector.names or ("@" not in subject.login and f"{subject.login}@" in selector.names)
    return kind is Kind.MEMBER


def _same_user(a: Subject, b: Subject) -> bool:
    return not a.tags and not b.tags and a.login == b.login


def _sort_ips(ips: Iterable[IpBytes]) -> list[str]:
    return [format_ip(ip) for ip in sorted(set(ips), key=lambda ip: (len(ip), ip))]


class CompiledPolicy:
    """One policy applied to one list of devices; ask it per device.

    Args:
        policy: what holds.
        subjects: all devices that may take part.
    """

    __slots__ = ("_policy", "_reach", "_subjects")

    def __init__(self, policy: Policy, subjects: Sequence[Subject]) -> None:
        self._policy = policy
        self._subjects = {subject.node_id: subject for subject in subjects}
        self._reach = self._compute_reach()

    def _compute_reach(self) -> dict[int, set[int]]:
        """Return destination -> the devices that may send to it."""
        reach: dict[int, set[int]] = {node_id: set() for node_id in self._subjects}
        for grant in self._policy.grants:
            sources = [s for s in self._subjects.values() if any(_picks(selector, s) for selector in grant.sources)]
            source_ids = {source.node_id for source in sources}
            if not source_ids:
                continue
            for subject in self._subjects.values():
                if any(d.kind is not Kind.SELF and _picks(d, subject) for d in grant.destinations):
                    reach[subject.node_id] |= source_ids
                elif any(d.kind is Kind.SELF for d in grant.destinations):
                    reach[subject.node_id].update(s.node_id for s in sources if _same_user(s, subject))
        return reach

    def visible_peers(self, node_id: int) -> set[int]:
        """Return the devices that *node_id* may reach or be reached by, without itself."""
        peers = {other for other, sources in self._reach.items() if node_id in sources}
        peers |= self._reach[node_id]
        peers.discard(node_id)
        return peers

    def attributes(self, node_id: int) -> list[str]:
        """Return the node capabilities that ``nodeAttrs`` gives to *node_id*, sorted."""
        subject = self._subjects[node_id]
        found: set[str] = set()
        for targets, attributes in self._policy.node_attributes:
            if any(_picks(target, subject) for target in targets):
                found.update(attributes)
        return sorted(found)

    def filter_rules(self, node_id: int) -> list[Json]:
        """Return the packet filter of *node_id*: tailcfg ``FilterRule`` objects, possibly none (deny all)."""
        subject = self._subjects[node_id]
        by_source: dict[tuple[tuple[str, ...], tuple[int, ...]], list[Json]] = {}
        capability_rules: list[Json] = []
        for grant in self._policy.grants:
            for own_only in (False, True):
                destinations = self._destinations(grant, subject, own_only=own_only)
                sources = self._sources(grant, subject, own_only=own_only) if destinations else ()
                if not sources:
                    continue
                if grant.capabilities:
                    capability_rules.append(_capability_rule(grant, sources, destinations, subject))
                    continue
                ports = by_source.setdefault((sources, grant.protocols), [])
                for ip in destinations:
                    for port_range in grant.ports:
                        entry: Json = {"IP": ip, "Ports": {"First": port_range.first, "Last": port_range.last}}
                        if entry not in ports:
                            ports.append(entry)
        rules: list[Json] = []
        for (sources, protocols), ports in by_source.items():
            rule: Json = {"SrcIPs": list(sources), "DstPorts": ports}
            if protocols:
                rule["IPProto"] = list(protocols)
            rules.append(rule)
        return rules + capability_rules

    def _destinations(self, grant: Grant, subject: Subject, *, own_only: bool) -> list[str]:
        """Return which destinations of *grant* are this device, as ``DstPorts`` texts."""
        selectors = [d for d in grant.destinations if (d.kind is Kind.SELF) is own_only]
        if own_only:
            return _sort_ips(subject.addresses) if selectors and not subject.tags else []
        if any(d.kind is Kind.ANY for d in selectors):
            return ["*"]
        ips: set[IpBytes] = set()
        for selector in selectors:
            if selector.kind is Kind.PREFIX and selector.prefix is not None:
                ips.update(ip for ip in subject.addresses if selector.prefix.contains(ip))
            elif _picks(selector, subject):
                ips.update(subject.addresses)
        return _sort_ips(ips)

    def _sources(self, grant: Grant, subject: Subject, *, own_only: bool) -> tuple[str, ...]:
        """Return the sources of *grant* toward *subject* as ``SrcIPs`` texts; only its user's devices if *own_only*."""
        if own_only:
            own = [s for s in self._subjects.values() if _same_user(s, subject)]
            return tuple(_sort_ips(ip for s in own if any(_picks(x, s) for x in grant.sources) for ip in s.addresses))
        kinds = {selector.kind for selector in grant.sources}
        if Kind.DANGER_ALL in kinds:
            return ("*",)
        texts = list(TAILNET_RANGES) if Kind.ANY in kinds else []
        ips: set[IpBytes] = set()
        for selector in grant.sources:
            if selector.kind is Kind.PREFIX and selector.prefix is not None:
                prefix = selector.prefix
                if prefix.is_single_ip:
                    ips.add(prefix.ip)
                elif str(prefix) not in texts:
                    texts.append(str(prefix))
            elif selector.kind is not Kind.ANY:
                ips.update(ip for s in self._subjects.values() if _picks(selector, s) for ip in s.addresses)
        if Kind.ANY not in kinds:
            texts.extend(_sort_ips(ips))
        return tuple(texts)

    def ssh_rules(self, node_id: int) -> list[Json]:
        """Return the SSH rules of *node_id*: tailcfg ``SSHRule`` objects, in the policy's order."""
        subject = self._subjects[node_id]
        rules: list[Json] = []
        for rule in self._policy.ssh:
            sources = self._ssh_sources(rule, subject)
            if not sources:
                continue
            entry: Json = {
                "principals": [{"nodeIP": ip} for ip in _sort_ips(ip for s in sources for ip in s.addresses)],
                "sshUsers": _ssh_users(rule.users),
                "action": {
                    "accept": True,
                    "allowAgentForwarding": True,
                    "allowLocalPortForwarding": True,
                    "allowRemotePortForwarding": True,
                },
            }
            if rule.accept_env:
                entry["acceptEnv"] = list(rule.accept_env)
            rules.append(entry)
        return rules

    def _ssh_sources(self, rule: SshRule, subject: Subject) -> list[Subject]:
        sources = [s for s in self._subjects.values() if any(_picks(selector, s) for selector in rule.sources)]
        if any(d.kind is not Kind.SELF and _picks(d, subject) for d in rule.destinations):
            return sources
        if any(d.kind is Kind.SELF for d in rule.destinations):
            return [s for s in sources if _same_user(s, subject)]
        return []


def _capability_rule(grant: Grant, sources: tuple[str, ...], destinations: list[str], subject: Subject) -> Json:
    # Dsts are always this device's own addresses: clients compare them with the address that was asked for.
    ips = destinations if destinations != ["*"] else _sort_ips(subject.addresses)
    prefixes = [f"{ip}/128" if ":" in ip else f"{ip}/32" for ip in ips]
    values = {name: list(entries) for name, entries in grant.capabilities.items()}
    return {"SrcIPs": list(sources), "CapGrant": [{"Dsts": prefixes, "CapMap": values}]}


def _ssh_users(users: Sequence[str]) -> dict[str, str]:
    """Return the map of requested to local user names: ``"="`` is "the same", ``""`` is "no"."""
    mapped = {user: user for user in users if user != "autogroup:nonroot"}
    if "autogroup:nonroot" in users:
        mapped["*"] = "="
    mapped.setdefault("root", "")  # "*" must never be read as leave to be root
    return mapped
