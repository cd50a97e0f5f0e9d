"""Control tests run in memory and on virtual time: a two-minute watchdog costs nothing."""

from typing import Any

import pytest

from tsnetpy.testing.clock import virtual_backend


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_backend(request.param)
