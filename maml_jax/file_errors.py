"""Errors of the file system that name the file."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the name of a file to errors of the system that lack it, such as those of a full disk.

    Args:
      path: the file that the block writes.

    Yields:
      Nothing.

    Raises:
      OSError: with the path as its `filename`.

    Example:
      >>> import errno
      >>> from maml_jax.file_errors import naming
      >>> try:
      ...     with naming("run/result.json"):
      ...         raise OSError(errno.ENOSPC, "No space left on device")
      ... except OSError as error:
      ...     print(error)
      [Errno 28] No space left on device: 'run/result.json'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
