"""The login page behind an AuthURL: who wants in, and how to let it in.

The page is open to anybody, so visiting it proves nothing. Approval takes a credential: an auth key typed in here, or
the administrator's command line on the server.
"""

import html
from typing import Final

from .tailnet import Pending
from .web import WebResponse

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:4em auto;padding:0 1em}"
    "code{background:#eee;padding:.1em .3em;overflow-wrap:anywhere}input{font:inherit;width:100%;box-sizing:border-box}"
)
_SECURITY: Final = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


def login_page(pending: Pending, problem: str = "") -> WebResponse:
    """Return the page for a login that waits; *problem* says why the last try failed."""
    hostname = html.escape(pending.hostname or "(no name)")
    command = html.escape(f"python -m tsnetpy coordinator nodes approve {pending.id}")
    notice = f"<p role=alert><strong>{html.escape(problem)}</strong></p>" if problem else ""
    return _page(
        "A device wants to join",
        f"<p>Name: <code>{hostname}</code><br>Machine: <code>{pending.machine}</code></p>{notice}"
        "<form method=post><p><label>An auth key of this tailnet lets it in:"
        "<input name=key type=password autocomplete=off required></label></p><p><button>Let it in</button></p></form>"
        f"<p>Or, on the server: <code>{command}</code></p>",
        403 if problem else 200,
    )


def approved_page(name: str) -> WebResponse:
    """Return the page that ends a login."""
    return _page("Done", f"<p><code>{html.escape(name)}</code> is in. You can close this page.</p>", 200)


def unknown_page() -> WebResponse:
    """Return the page for a login that is not (or no longer) waiting."""
    return _page("No such login", "<p>It is unknown, decided already, or too old. Start again on the device.</p>", 404)


def _page(title: str, body: str, status: int) -> WebResponse:
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style><h1>{title}</h1>{body}</html>"
    )
    return WebResponse(status, text.encode(), "text/html; charset=utf-8", _SECURITY)
