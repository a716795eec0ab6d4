"""Stop signals that let a run save before it ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from jax.experimental import multihost_utils

from maml_jax import processes

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_KILLED_BY_CTRL_C = 130
_ASKED = b"\nStopping once the state is saved. Press Ctrl-C again to stop at once, unsaved.\n"


class StopRequest:
    """Whether a run was asked to stop, and by which signal.

    Attributes:
      signal: the signal number, or None.

    Example:
      >>> from maml_jax.stop_signals import StopRequest
      >>> StopRequest().signal is None
      True
    """

    def __init__(self):
        self.signal: int | None = None

    def agreed(self, call: int) -> int | None:
        """Says whether to stop now; of several processes all say so at the same call.

        Args:
          call: how many times it was asked before.

        Returns:
          The signal number, or None. SIGTERM where another process was asked to stop.
        """
        if not processes.several():
            return self.signal
        # Not short-circuited by our own signal: every process must ask at every call.
        reached = multihost_utils.reached_preemption_sync_point(call)
        return (self.signal or signal.SIGTERM) if reached else None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes SIGTERM and the first Ctrl-C instead of dying; a second Ctrl-C kills at once.

    The first one is answered by a line on standard error. Handlers are installed for the
    block only, and only in the main thread, the only one that Python allows. Of several
    processes JAX has the handler of SIGTERM, which tells all of them; Ctrl-C is passed on to it.

    Yields:
      A `StopRequest` to poll.

    Example:
      >>> from maml_jax.stop_signals import stop_requests
      >>> with stop_requests() as request:
      ...     request.signal is None
      True
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number, frame):
        del frame
        if request.signal is None:
            request.signal = number
            if processes.several():
                os.kill(os.getpid(), signal.SIGTERM)

    ours = (signal.SIGINT,) if processes.several() else _NUMBERS
    before = {number: signal.signal(number, note) for number in ours}
    try:
        with _second_ctrl_c_kills():
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _second_ctrl_c_kills() -> Iterator[None]:
    """Watches signals from a thread: Python's handlers wait while a compiled call runs."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watcher = threading.Thread(target=_watch, args=(read_end,), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
        watcher.join()
        os.close(read_end)


def _watch(read_end: int) -> None:
    """Reads the numbers of signals as they come, until the other end is closed."""
    asked = False
    while number := os.read(read_end, 1):
        if number[0] not in _NUMBERS:
            continue
        if asked and number[0] == signal.SIGINT:
            os._exit(_KILLED_BY_CTRL_C)
        if not asked:
            os.write(2, _ASKED)
        asked = True
