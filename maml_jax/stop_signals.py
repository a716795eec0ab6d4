"""Stop signals that let a run save before it ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator


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


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes SIGTERM and the first Ctrl-C instead of dying; a second Ctrl-C kills at once.

    Handlers are installed for the block only, and only in the main thread, the only one
    that Python allows.

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
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
