"""Answers, byte for byte, against what the resolver of an official node without an upstream said."""

import base64
import json
import pathlib

import pytest

from tsnetpy.base.addr import parse_ip
from tsnetpy.dns import ExtraRecord, MagicHost, MagicTable, answer

CASES = [
    json.loads(line)
    for line in (pathlib.Path(__file__).parents[1] / "data/dns/cases.jsonl").read_text(encoding="utf-8").splitlines()
]

# Where this server says something else on purpose.
DIVERGENCES = {
    "malformed-302": "the official answer to a message without a header repeats the question of some earlier client",
    "malformed-304": "the official answer to a message without a header repeats the question of some earlier client",
    "malformed-305": "the official answer to a message without a header repeats the question of some earlier client",
    "extra-105": "names are case-blind (RFC 4343): an extra record in upper case is found",
    "extra-107": "names are case-blind (RFC 4343): an extra record in upper case is found",
    "extra-108": "names are case-blind (RFC 4343): an extra record in upper case is found",
}

TABLE = MagicTable(
    "lab.test",
    [
        MagicHost(f"{name}.lab.test.", (parse_ip(f"100.64.0.{n}"), parse_ip(f"fd7a:115c:a1e0::{n}")))
        for name, n in (("server", 1), ("tagged", 2), ("client", 3))
    ],
    [
        ExtraRecord(name, parse_ip(value))
        for name, value in (
            ("app.lab.test", "100.64.0.1"),
            ("v6.lab.test", "fd7a:115c:a1e0::1"),
            ("both.lab.test", "100.64.0.1"),
            ("both.lab.test", "fd7a:115c:a1e0::1"),
            ("multi.lab.test", "100.64.0.1"),
            ("multi.lab.test", "100.64.0.2"),
            ("ext.example.net", "198.51.100.7"),
            ("UPPER.lab.test", "100.64.0.9"),
        )
    ],
    search_domains=["lab.test"],
)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_answers_as_recorded(case: dict[str, object]) -> None:
    query = base64.b64decode(str(case["query_b64"]))
    responses = case["response_b64"]
    assert isinstance(responses, list)
    (recorded,) = (base64.b64decode(response) for response in responses)
    # The serial of an SOA record is the time of the recording; it stands 20 bytes before the end.
    serial = int.from_bytes(recorded[-20:-16], "big") if recorded[8:10] != b"\0\0" else 0
    ours = answer(query, TABLE, serial, tcp=case["proto"] == "tcp")
    if case["id"] in DIVERGENCES:
        assert ours != recorded
    else:
        assert ours == recorded
