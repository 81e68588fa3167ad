"""TCP ports of this machine: free ones, and who holds a busy one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

from millrace.core.address import listening_address
from millrace.core.errors import ConfigError

# Below the range that outgoing connections draw from, so that a port stays ours between restarts.
FIRST_PORT = 20_000
LAST_PORT = 31_999
MAX_TRIES = 200
MAX_NAME_CHARS = 60
_LISTEN_STATE = "0A"


def can_bind(host: str, port: int) -> bool:
    """True if a server could listen there now. Raises `ConfigError` for a host not ours."""
    try:
        family, address = listening_address(host, port)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as exc:
        if exc.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        raise ConfigError(f"cannot listen on {host}: {exc.strerror}") from exc
    return True


def pick_free_port(host: str, taken: set[int]) -> int:
    """A port that nobody listens on and that is not in `taken`; adds it there."""
    for _ in range(MAX_TRIES):
        port = random.randint(FIRST_PORT, LAST_PORT)
        if port not in taken and can_bind(host, port):
            taken.add(port)
            return port
    raise ConfigError(f"no free port on {host} between {FIRST_PORT} and {LAST_PORT}")


def require_free_port(host: str, port: int, flag: str) -> None:
    """Raises `ConfigError` naming the owner of a busy port and the flag that changes it."""
    if not can_bind(host, port):
        owner = describe_port_owner(port)
        raise ConfigError(
            f"port {port} on {host} is in use by {owner}; choose another: {flag} PORT"
        )


def describe_port_owner(port: int) -> str:
    """`name (pid 123)` of the process that listens on `port`, as far as we may see it."""
    pids = _owners_from_proc(port) if Path("/proc/net/tcp").exists() else _owners_from_lsof(port)
    if not pids:
        return "another process (not visible to this user)"
    return ", ".join(f"{_process_name(pid)} (pid {pid})" for pid in sorted(pids))


def _owners_from_proc(port: int) -> set[int]:
    inodes = _listening_inodes(port)
    return {pid for pid in _all_pids() if inodes & _socket_inodes(pid)} if inodes else set()


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text(encoding="utf-8").splitlines()[1:]:
            columns = line.split()
            local_port = int(columns[1].rsplit(":", 1)[1], 16)
            if local_port == port and columns[3] == _LISTEN_STATE:
                inodes.add(columns[9])
    return inodes


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        # Another user's process, or one that has ended meanwhile.
        return found
    return found


def _owners_from_lsof(port: int) -> set[int]:
    if shutil.which("lsof") is None:
        return set()
    command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t"]
    shown = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return {int(word) for word in shown.stdout.split()}


def _process_name(pid: int) -> str:
    """The command line, shortened: half of all servers are called `python`."""
    cmdline = Path(f"/proc/{pid}/cmdline")
    if cmdline.exists():
        words = cmdline.read_bytes().decode(errors="replace").split("\0")
    else:
        command = ["ps", "-o", "args=", "-p", str(pid)]
        words = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        ).stdout.split()
    name = " ".join([Path(words[0]).name, *words[1:3]]).strip()
    return name[:MAX_NAME_CHARS] or "unknown"
