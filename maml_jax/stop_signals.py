"""Stop signals that let a run save before it ends, or at least leave nothing behind."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jax.experimental import multihost_utils

from maml_jax import exit_codes, processes

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_UNWIND = 5.0
_SECONDS_TO_BEGIN = 0.2
_ASKED = b"\nStopping once the state is saved. Press Ctrl-C again to stop at once, unsaved.\n"


class Terminated(BaseException):
    """SIGTERM came where there is nothing to save."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raises `Terminated` in the block on SIGTERM, so that locks and files are let go.

    Ctrl-C raises `KeyboardInterrupt`, as ever. A compiled call may keep Python from either: five
    seconds after the signal, or at a second Ctrl-C, the process ends as it is, with the exit code
    of the signal. Within, `stop_requests` notes signals instead, and hands them back.

    It is raised once: schedulers send several, and the second must not cut in where the first is
    answered. So SIGTERM stays ignored after the block, where the process must end. Only the main
    thread can do so; in another nothing is changed.

    Yields:
      Nothing.

    Raises:
      Terminated: on SIGTERM, as soon as Python has control again.

    Example:
      >>> from maml_jax.stop_signals import sigterm_raises
      >>> with sigterm_raises():
      ...     print("nothing came")
      nothing came
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        del frame
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _watched(_end_soon):
            yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


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
        with _watched(_answer_once):
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watched(watch: Callable[[int], None]) -> Iterator[None]:
    """Watches signals from a thread: Python's handlers wait while a compiled call runs."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watcher = threading.Thread(target=watch, args=(read_end,), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
        watcher.join()
        os.close(read_end)


def _answer_once(read_end: int) -> None:
    """Answers the first signal; ends the process at a Ctrl-C after it."""
    asked = False
    while number := os.read(read_end, 1):
        if number[0] not in _NUMBERS:
            continue
        if asked and number[0] == signal.SIGINT:
            os._exit(exit_codes.INTERRUPTED)
        if not asked:
            _answer()
        asked = True


def _end_soon(read_end: int) -> None:
    """Ends the process some time after the first signal, or at a Ctrl-C after it."""
    code = None
    while code is None:
        if not (number := os.read(read_end, 1)):
            return
        code = exit_codes.AFTER_SIGNAL.get(signal.Signals(number[0]))
    end = time.monotonic() + _SECONDS_TO_UNWIND
    begun = select.select([read_end], [], [], _SECONDS_TO_BEGIN)[0]
    if code == exit_codes.STOPPED and not begun:
        os.kill(os.getpid(), signal.SIGTERM)  # Just before a call that waits, it ended no wait.
    while select.select([read_end], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (number := os.read(read_end, 1)):
            return  # Python got control, and the block is over.
        if number[0] == signal.SIGINT:
            break
    os._exit(code)


def _answer() -> None:
    """Says that the first signal was heard, if standard error is there and anybody reads it."""
    # Where it was closed from the start, another file may have its number.
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):
            os.write(2, _ASKED)
