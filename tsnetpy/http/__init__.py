"""HTTP to nodes of the tailnet with `httpx <https://www.python-httpx.org>`_ (the ``http`` extra).

::

    async with tsnetpy.Node("laptop") as node, http_client(node) as client:
        page = await client.get("http://web/")

What ``HTTPClient()`` is to Go's tsnet: connections go through the node and nowhere else, names are those of the
tailnet, and ``HTTP_PROXY`` has no say. A plain WireGuard node serves as well.
"""

try:
    import httpx as _httpx  # noqa: F401 - asked for here, where the answer can say how to get it
except ModuleNotFoundError as _missing:
    _said = f"tsnetpy.http needs {_missing.name}: pip install 'tsnetpy[http]'"
    raise ModuleNotFoundError(_said, name=_missing.name) from None

from .backend import Dials, TunnelBackend
from .transport import DEFAULT_TIMEOUT, HttpTransport, http_client

__all__ = ["DEFAULT_TIMEOUT", "Dials", "HttpTransport", "TunnelBackend", "http_client"]
