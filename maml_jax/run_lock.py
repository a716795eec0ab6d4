"""One run at a time in a folder.

The kernel holds the lock, so that whatever ends a process frees it too: a kill, a crash, a power
cut. The file says who has it: for the message, and because some network file systems lock within
one host only, so that a file that another host left must not be taken over unasked.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from maml_jax import processes
from maml_jax.file_errors import naming

FILE = "run.lock"
"""Name of the file in the folder of a run; there while it trains."""


class RunLockedError(OSError):
    """Another process trains in the folder."""


@contextlib.contextmanager
def held(run_dir: str | os.PathLike, tell: Callable[[str], object] = print) -> Iterator[None]:
    """Keeps other processes from training in a folder, until the block ends.

    Of several processes that train together, process 0 holds it for all.

    Args:
      run_dir: the folder; must be there.
      tell: told if the process that held it before was killed.

    Raises:
      RunLockedError: if another process holds it, or may do so on another host.
      ProcessError: in the other processes, if process 0 fails.

    Example:
      >>> import tempfile
      >>> from maml_jax import run_lock
      >>> with tempfile.TemporaryDirectory() as folder, run_lock.held(folder):
      ...     try:
      ...         with run_lock.held(folder):
      ...             print("never")
      ...     except run_lock.RunLockedError:
      ...         print("in use")
      in use
    """
    path = pathlib.Path(run_dir) / FILE
    with contextlib.ExitStack() as stack:
        processes.first_does(lambda: stack.enter_context(_held_here(path, tell)))
        yield


@contextlib.contextmanager
def _held_here(path: pathlib.Path, tell: Callable[[str], object]) -> Iterator[None]:
    file = _open_locked(path)
    try:
        before, here = _read(file), socket.gethostname()
        if before.get("host", here) != here:
            raise RunLockedError(
                f"{path.parent} is in use by {_name(before)}, and this is {here}: if nothing "
                f"trains there any more, remove {path} and try again."
            )
        if before:
            tell(f"{_name(before)} was killed and left its lock: taking over.")
        try:
            with naming(path):
                _write(file, _this_process(here))
            yield
        finally:
            # Before the lock is let go: afterwards the file may be another's.
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _open_locked(path: pathlib.Path) -> int:
    """Opens the file and locks it; what it says is what a process before left there."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(file):
                raise RunLockedError(
                    f"{path.parent} is in use by {_name(_read(file))}: wait for it, or stop it."
                )
            # Between the two lines its holder may have removed it: then it is nobody's.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int) -> bool:
    """Locks an open file, if no living process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        # No locks in this file system: the number of a living process, unless it is another's.
        before = _read(file)
        started = _start_of(before.get("pid"))
        here = before.get("host") == socket.gethostname()
        return not (here and started is not None and started == before.get("started"))
    return True


def _this_process(host: str) -> dict[str, Any]:
    since = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
    return {"host": host, "pid": os.getpid(), "started": _start_of(os.getpid()), "since": since}


def _start_of(pid: Any) -> str | None:
    """When a process of this host started, in ticks since boot; None if there is none."""
    with contextlib.suppress(OSError):
        # Its name, in brackets, may hold spaces and brackets.
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _read(file: int) -> dict[str, Any]:
    """Reads who held the lock; nothing if the file is new, or was cut by a power cut."""
    with contextlib.suppress(ValueError):
        holder = json.loads(os.pread(file, 4096, 0))
        if isinstance(holder, dict):
            return holder
    return {}


def _write(file: int, holder: dict[str, Any]) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(holder).encode() + b"\n", 0)
    os.fsync(file)
