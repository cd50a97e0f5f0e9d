"""Our stack against the Linux kernel's, over a TUN device in a network namespace of its own."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest


@pytest.mark.interop
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not os.path.exists("/dev/net/tun"),
    reason="needs root on Linux and /dev/net/tun",
)
@pytest.mark.skipif(not all(map(shutil.which, ("unshare", "ip", "ping"))), reason="needs unshare, ip and ping")
def test_against_the_kernel() -> None:
    root = pathlib.Path(__file__).parents[2]
    command = ["unshare", "-n", sys.executable, "-m", "tests.ipstack.kernel_peer"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
