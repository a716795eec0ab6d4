"""Standard output and standard error that nobody may read any more.

Of `maml-jax train | tee log`, Ctrl-C ends `tee` first. A run must not end with its reader, least
of all before its state is saved: what it says from then on goes nowhere.
"""

import contextlib
import os
import sys
from typing import IO, NoReturn

from rich.console import Console


class LastingConsole(Console):
    """A console that goes silent, and does not end the process, when its reader is gone.

    Example:
      >>> from maml_jax.streams import LastingConsole
      >>> LastingConsole().print("step 10")
      step 10
    """

    def on_broken_pipe(self) -> None:
        """Is called by Rich when a write failed; there it would exit with 1."""
        self.quiet = True
        _discard(self.file)


def complain(line: str) -> None:
    """Prints a line on standard error, if anybody reads it.

    Args:
      line: the line.
    """
    try:
        print(line, file=sys.stderr)
    except BrokenPipeError:
        _discard(sys.stderr)


def leave(code: int) -> NoReturn:
    """Ends the process at once, without tearing the interpreter down.

    What is torn down while JAX computes may end in SIGSEGV instead of the exit code; and the end
    of a process that JAX has joined to others waits for them.

    Args:
      code: the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            if stream is not None:  # It is None where it was closed from the start.
                stream.flush()
    os._exit(code)


def _discard(stream: IO[str]) -> None:
    """Lets what is written to a stream go nowhere, what its buffer still holds included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
