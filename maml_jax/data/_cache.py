"""A cache of decoded or generated arrays that never returns a damaged one."""

import glob
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np

from maml_jax.atomic_files import written_whole
from maml_jax.data._folders import cache_folder, make_folder

_LOG = logging.getLogger(__name__)
_DIGEST = "sha256"
# A file is written in seconds: a temporary one that is older is of a killed process.
_ABANDONED_SECONDS = 3600.0


def cached_arrays(
    name: str,
    build: Callable[[], dict[str, np.ndarray]],
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Returns `build()`, or the copy of its result that an earlier call kept.

    The file holds a SHA-256 of its arrays. A file that is cut short, altered or of
    another format is built again; one is replaced only by a whole new one, so a process
    killed half-way, or two at once, leave no bad file. Where the folder cannot be
    written, a warning is logged and nothing is kept.

    Args:
      name: file name without suffix; it must name everything that the result depends on.
      build: makes the arrays; called only if there is no good copy.
      cache_dir: the folder; None means `cache_folder()`.

    Returns:
      The arrays by name, none of them of dtype object.
    """
    path = pathlib.Path(cache_dir or cache_folder()) / f"{name}.npz"
    if path.is_file():
        try:
            return _load(path)
        except Exception as error:
            # Any: a flipped bit may say "encrypted", "unknown compression" or "huge array".
            _LOG.warning("Building %s again: it is damaged (%s).", path, error)
    arrays = build()
    try:
        _store(path, arrays)
    except OSError as error:
        _LOG.warning("Not keeping %s, so the next run builds it again: %s.", path, error)
    return arrays


def fingerprint(*parts: object) -> str:
    """Returns 12 hexadecimal digits that change with any of `parts`."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    # Opened here, because NumPy leaves its own file open when the archive is bad.
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        # Arrays are stored as they are, so a file that unpacks to more is not ours.
        if sum(member.file_size for member in file.zip.infolist()) > path.stat().st_size:
            raise ValueError("it would unpack to more than its size")
        arrays = {name: file[name] for name in file.files}
    wanted, got = str(arrays.pop(_DIGEST)), _digest(arrays)
    if wanted != got:
        raise ValueError(f"its SHA-256 does not match: {wanted} was kept, {got} is there")
    return arrays


def _store(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    make_folder(path.parent)
    _clear_abandoned(path)
    with written_whole(path) as file:
        np.savez(file, allow_pickle=False, **arrays, **{_DIGEST: np.array(_digest(arrays))})


def _clear_abandoned(path: pathlib.Path) -> None:
    """Removes what killed processes left of this file; what a living one writes is younger."""
    for temporary in path.parent.glob(f"{glob.escape(path.stem)}*.tmp"):
        if time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS:
            temporary.unlink(missing_ok=True)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.hexdigest()
