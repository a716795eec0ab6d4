"""Files that are there whole or not at all, whatever ends the process that writes them."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from maml_jax.file_errors import naming


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Gives a new file that takes its name when the block ends; until then the old one stays.

    It is written beside its place, flushed, and renamed in one step; who may read it is as the
    umask says. If anything fails nothing is left of it. A kill may leave a file that ends in
    `.tmp`.

    Args:
      path: the file, in a folder that is there; replaced if it is there.

    Yields:
      The open file.

    Raises:
      OSError: if it cannot be written, with the path.

    Example:
      >>> import pathlib, tempfile
      >>> from maml_jax.atomic_files import written_whole
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "result.json"
      ...     with written_whole(path) as file:
      ...         _ = file.write(b"{}")
      ...     [found.name for found in path.parent.iterdir()], path.read_text()
      (['result.json'], '{}')
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.tmp")
    with naming(path):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                # Without it a power cut can leave the new name on an empty file.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
