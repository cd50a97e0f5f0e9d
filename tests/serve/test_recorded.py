"""Replay of what clients sent to an official Serve: does our backend see the same, does the client get the same?

Left out of the comparison, because it differs from run to run or is not part of the behaviour: ``Date``, the order of
fields, the reason phrase, how bodies are cut into chunks, and the texts of error responses.
"""

import base64
import json
import os
import pathlib
import re
from typing import Any

import anyio
import pytest

from tests.serve.backend_kit import Backend
from tests.serve.kit import MemoryHost, MemoryStream, settle
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.serve import parse_serve_document, run
from tsnetpy.tailcfg.node import Node, UserProfile

DATA = pathlib.Path(__file__).parents[1] / "data/serve"
CASES: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "cases.jsonl").read_text("utf-8").splitlines()]

_STRICT = "llhttp is stricter than Go: what two parsers could read differently is refused"
_WSGI = "spellings with underscores are the same header to WSGI and CGI: they are dropped, too"
_SNIFF = "the media type of a backend's response is not guessed"
_NOT_A_FILE = "files answer GET and HEAD only"
_BLAME = "a broken request body is the client's fault: 400 and not 502"

DIVERGENCES: dict[str, str] = {
    "file-075": "a redirection carries no HTML",
    "file-077": "a redirection carries no HTML",
    "file-084": "the official location (/files/./) is broken",
    "file-090": "a symbolic link out of the directory is not followed",
    "file-116": _NOT_A_FILE,
    "file-117": _NOT_A_FILE,
    "file-119": _NOT_A_FILE,
    "file-120": _NOT_A_FILE,
    "file-125": "several ranges are answered with the whole file (RFC 9110 §14.2 allows it)",
    "host-139": "host names are case-blind (RFC 9110 §4.2.3)",
    "path-245": "only ASCII may stand in a request target (RFC 3986)",
    "path-256": "only ASCII may stand in a request target (RFC 3986)",
    "malformed-471": "only ASCII may stand in a request target (RFC 3986)",
    "method-279": "PRI is no method (RFC 9113 §11.6)",
    "method-293": "a connection is closed after CONNECT",
    "method-294": "a connection is closed after CONNECT",
    "method-296": _STRICT,
    "body-304": "trailers that are not passed on are not announced either",
    "body-306": "trailers that are not passed on are not announced either",
    "body-307": "the Trailer field is not looked at, since trailers go nowhere",
    "body-309": _BLAME,
    "body-310": _BLAME,
    "body-312": _STRICT,
    "body-313": "leading zeros in a chunk size are harmless",
    "body-315": _BLAME,
    "body-316": _BLAME,
    "body-318": "the 502 says that the connection ends",
    "body-321": "Transfer-Encoding with Content-Length is refused (RFC 9112 §6.1)",
    "body-322": _STRICT + " (400 and not 501)",
    "body-327": _STRICT + " (400 and not 501)",
    "body-328": "Transfer-Encoding in HTTP/1.0 is refused (RFC 9112 §6.1)",
    "body-348": "a client of HTTP/1.0 gets no 100 (RFC 9110 §15.2)",
    "spoof-356": _WSGI,
    "spoof-359": _WSGI,
    "spoof-365": _WSGI,
    "spoof-370": _WSGI,
    "tagged-396": _WSGI,
    "headers-418": "no field is lost, not even a second User-Agent",
    "malformed-441": "an empty line before the request line is skipped (RFC 9112 §2.2)",
    "malformed-443": _STRICT,
    "malformed-444": _STRICT,
    "malformed-447": _STRICT,
    "malformed-455": "a request line without version is HTTP/0.9: 505",
    "malformed-456": "the fields of a request without version are awaited before it is refused",
    "malformed-458": _STRICT,
    "malformed-476": "empty lines are skipped (RFC 9112 §2.2)",
    "malformed-483": _STRICT,
    "websocket-508": "an end of one direction is passed on, so the other side can still answer",
    "websocket-517": "a malformed Upgrade field is ignored",
    "backend-528": "what came before the backend broke off is passed on",
    "backend-537": _SNIFF,
    "backend-544": _SNIFF,
    "backend-550": _SNIFF,
    "backend-547": "a response with an invalid field is refused",
    "backend-549": "Transfer-Encoding with Content-Length is refused (RFC 9112 §6.1)",
    "backend-552": "gzip is not asked for on behalf of a client that did not",
}

ALICE = WhoIs(
    Node(name="client.lab.test."),
    UserProfile(
        login_name="alice@example.com",
        display_name="Älice Example",
        profile_pic_url="https://pics.example.com/a?x=1&y=%20",
    ),
    {"example.com/cap/api": [{"role": "admin"}, {"näme": "ü"}], "example.com/cap/other": [{}]},
)
PROBE = WhoIs(Node(name="tagged.lab.test.", tags=("tag:probe",)), None)
CLIENTS = {"user": ("100.64.0.3", "fd7a:115c:a1e0::3"), "tagged": ("100.64.0.2", "fd7a:115c:a1e0::2")}
WHO = {"100.64.0.3": ALICE, "fd7a:115c:a1e0::3": ALICE, "100.64.0.2": PROBE, "fd7a:115c:a1e0::2": PROBE}

MTIME = 1706933106  # 2024-02-03 04:05:06 UTC

Response = tuple[int, list[tuple[str, str]], bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The directory that was served."""
    outer = tmp_path_factory.mktemp("serve")
    root = outer / "files"
    for name, content in {
        "hello.txt": b"hello file\n",
        "data.json": b'{"a":1}\n',
        "noext": b"\0\1\2bin",
        ".hidden": b"h",
        "idx/index.html": b"<h1>index</h1>\n",
        "sub/page.html": b"<p>page</p>\n",
        "with space/ü&<>.txt": b"x\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "sub/empty").mkdir()
    os.mkfifo(root / "fifo")
    (outer / "outside").write_bytes(b"vm\n")
    (root / "link").symlink_to(outer / "outside")
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            os.utime(path, (MTIME, MTIME))
    return root


def parse_responses(data: bytes, methods: list[str]) -> list[Response]:
    """Read final and informational responses one after the other; what is not HTTP becomes the last body."""
    found: list[Response] = []
    methods = [*methods, *["GET"] * 9]
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        if not mark:
            found.append((0, [], head))
            break
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        fields = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines[1:])]
        low = dict(fields)
        body = b""
        if status == 101:
            body, data = data, b""
        elif status < 200:
            pass
        elif (method := methods.pop(0)) == "HEAD" or status in (204, 304):
            del method
        elif low.get("transfer-encoding") == "chunked":
            while data:
                size, mark, data = data.partition(b"\r\n")
                count = int(size, 16)
                if count == 0:
                    trailers, _, data = (b"\r\n" + data).partition(b"\r\n\r\n")
                    body += trailers
                    break
                body, data = body + data[:count], data[count + 2 :]
            else:
                body += b"(cut off)"
        elif "content-length" in low:
            size_ = int(low["content-length"])
            body, data = data[:size_], data[size_:]
        else:
            body, data = data, b""
        found.append((status, fields, body))
    return found


def comparable(response: Response) -> Response:
    """Leave out what the module's docstring says."""
    status, fields, body = response
    fields = sorted(field for field in fields if field[0] not in ("date", "content-length"))
    if status >= 400 and not body.startswith(b"{"):
        return status, [field for field in fields if field[0] == "connection"], b""
    if body.startswith(b'{"line"'):
        body = b"(the request, compared at the backend)"
    return status, fields, body


def backend_view(entry: dict[str, Any], sent: bytes) -> tuple[Any, ...]:
    """Return what the backend saw in a form that can be compared."""
    if "upgraded" in entry or "upgraded_b64" in entry:
        return ("tunnel", entry["upgraded"] if "upgraded" in entry else entry["upgraded_b64"])
    lines = entry["head"].split("\r\n")
    fields = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines[1:] if line)]
    if b"accept-encoding" not in sent.lower():
        fields = [field for field in fields if field != ("accept-encoding", "gzip")]  # Go's client adds it
    body = entry["body"] if "body" in entry else base64.b64decode(entry.get("body_b64", ""))
    return (entry["listener"], lines[0], sorted(fields), body, entry.get("framing", "none"))


async def replay(case: dict[str, Any], files: pathlib.Path) -> tuple[bytes, bool, list[dict[str, Any]]]:
    """Send what the client sent; return what it gets, whether the connection ended, and what the backend saw."""
    document = json.loads((DATA / "config.json").read_text("utf-8").replace("/home/files", str(files)))
    document["TCP"] = {port: document["TCP"][port] for port in ("80", "8080")}
    config = parse_serve_document(json.dumps(document))
    host = MemoryHost(who=WHO)
    received = bytearray()
    ended, first = anyio.Event(), anyio.Event()

    async def collect(stream: MemoryStream) -> None:
        try:
            while True:
                received.extend(await stream.receive())
                first.set()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            ended.set()
            first.set()

    async with anyio.create_task_group() as group:
        backend = Backend(group)

        async def serve(*, task_status: anyio.abc.TaskStatus[list[str]]) -> None:
            await run(host, config, dial=backend.dial, task_status=task_status)

        await group.start(serve)
        address = CLIENTS[case["source"]][case["family"] == 6]
        stream = host.listeners[case["port"]].connect((address, 40000))
        group.start_soon(collect, stream)
        for part in case["send"]:
            if part["b64"]:
                try:
                    await stream.send(base64.b64decode(part["b64"]))
                except anyio.BrokenResourceError:
                    break
            await settle()
        if case["then_fin"]:
            await stream.send_eof()
        await settle()
        if case["recv_b64"]:  # files come through a thread
            with anyio.move_on_after(5):
                await first.wait()
        await settle()
        group.cancel_scope.cancel()
    return bytes(received), ended.is_set(), backend.seen


def outcome(received: bytes, seen: list[dict[str, Any]], case: dict[str, Any]) -> tuple[Any, Any]:
    """Return client's and backend's view, comparable."""
    sent = b"".join(base64.b64decode(part["b64"] or "") for part in case["send"])
    methods = re.findall(rb"^([A-Z-]+) \S+ HTTP/1\.\d\r?$", sent, re.MULTILINE)
    responses = parse_responses(received, [method.decode() for method in methods])
    return [comparable(item) for item in responses], [backend_view(entry, sent) for entry in seen]


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
async def test_as_recorded(case: dict[str, Any], files: pathlib.Path) -> None:
    received, ended, seen = await replay(case, files)
    ours = outcome(received, seen, case)
    theirs = outcome(base64.b64decode(case["recv_b64"]), case.get("backend") or [], case)
    same = ours == theirs and ended == (case["end"] != "open")
    if case["id"] in DIVERGENCES:
        assert not same, "this behaves as recorded: take it off the list"
    else:
        assert ours == theirs
        assert ended == (case["end"] != "open")
