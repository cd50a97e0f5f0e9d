"""A machine on the tailnet to log in to: sessions run as the user of this process, the tailnet's policy says who may.

TS_AUTHKEY=... python apps/ssh_box.py [STATE_DIR]        then, on another node:  ssh box
"""

import sys

import anyio

from tsnetpy import Node, ssh


async def main(state_dir: str | None) -> None:
    """Serve until interrupted; with a state directory the node and its host keys stay the same at the next start."""
    async with Node("box", state_dir=state_dir) as node, anyio.create_task_group() as group:
        await group.start(ssh.serve, node, ssh.SshConfig(state_dir=state_dir))
        print(f"ssh {node.name}")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
