"""Checkpoints: written whole or not at all, verified before they are used.

A checkpoint is a folder named by its step. It holds the arrays as Orbax wrote them, a
`manifest.json` with a SHA-256 of every file and of every leaf, and the SHA-256 of that
manifest. The digests are needed: Orbax restores a flipped bit without a word.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maml_jax import processes
from maml_jax.checkpoint_files import FORMAT_VERSION as FORMAT_VERSION
from maml_jax.checkpoint_files import (
    REPLACED,
    STATE,
    TEMPORARY,
    CheckpointWriteError,
    locate,
    publish,
    remove,
    settle,
    write_arrays,
    write_manifest,
)
from maml_jax.checkpoint_files import CheckpointCorruptError as CheckpointCorruptError
from maml_jax.checkpoint_files import CheckpointError as CheckpointError
from maml_jax.checkpoint_files import CheckpointMismatchError as CheckpointMismatchError
from maml_jax.checkpoint_files import CheckpointVersionError as CheckpointVersionError
from maml_jax.checkpoint_files import read_manifest as read_manifest
from maml_jax.checkpoint_leaves import placed, to_host
from maml_jax.checkpoint_reading import as_json, pack, read_newest, unpack
from maml_jax.checkpoint_reading import verify as verify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A verified checkpoint.

    Attributes:
      step: number of outer steps done, at least 0.
      state: the tree that was saved, equal in every bit.
      config: the settings that were saved with it.
    """

    step: int
    state: Any
    config: dict[str, Any]


def save(
    folder: str | os.PathLike, step: int, state: Any, *, config: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes `state` as the checkpoint of `step`; returns when it is safely on disk.

    The state is copied to the host first, so its buffers may be donated afterwards. The
    files go to a temporary folder, are flushed, and get their name by one atomic
    rename: a kill at any time leaves the old checkpoints or the new one, never a half.
    Of several processes that train together all call it, and process 0 writes for all.

    Args:
      folder: where the checkpoints are; made if missing.
      step: number of outer steps done, at least 0. A checkpoint of the same step is
        replaced.
      state: a tree of arrays, scalars and typed random keys (no key is consumed). Python
        numbers are saved with 64 bits; weak types are not kept.
      config: settings to save with it, a dict that JSON can hold.
      keep: of this checkpoint and the earlier ones, how many stay; at least 2. Those of
        later steps are left alone, as a resumed run replaces them when it gets there.

    Returns:
      The folder of this checkpoint.

    Raises:
      ValueError: if `step`, `state`, `config` or `keep` is not as said above.
      CheckpointWriteError: if the disk is full or any file operation fails.
      ProcessError: in the other processes, if process 0 fails.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from maml_jax import checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = checkpoints.save(folder, 100, {"w": jnp.ones(3)}, config={"shots": 5})
      ...     restored = checkpoints.restore(folder, {"w": jnp.zeros(3)})
      >>> path.name, restored.step, restored.config
      ('00000100', 100, {'shots': 5})
    """
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}.")
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}: one may turn out corrupt.")
    config = as_json(config)
    leaves, arrays = to_host(state)
    folder = Path(folder).absolute()

    def write() -> None:
        _write(folder, step, leaves, arrays, config=config, keep=keep)

    processes.first_does(write)
    return folder / f"{step:08d}"


def _write(folder: Path, step: int, leaves, arrays, *, config, keep: int) -> None:
    """Writes host arrays as the checkpoint of a step, and removes those that are too many."""
    with _as_write_error(folder, sum(array.nbytes for array in arrays)):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{step:08d}-", dir=folder))
        try:
            write_arrays(temporary / STATE, arrays)
            write_manifest(temporary, step=step, config=config, leaves=leaves)
            publish(temporary, folder / f"{step:08d}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in [other for other in steps(folder) if other <= step][:-keep]:
            remove(locate(folder)[old])


def restore(
    folder: str | os.PathLike, target: Any, *, config: Mapping[str, Any] | None = None
) -> Restored | None:
    """Reads the newest checkpoint that verifies; changes nothing on disk.

    Of several processes that train together all call it, and process 0 reads for all.

    Args:
      folder: where the checkpoints are.
      target: a tree like the one saved, of arrays or `jax.ShapeDtypeStruct`. It gives the
        structure, shapes and dtypes that are required, and the type and sharding of
        what is returned: NumPy arrays and Python numbers stay what they are.
      config: settings that must equal the saved ones; None checks nothing, and saved
        settings that are not in it are not compared.

    Returns:
      The checkpoint, or None if there is none at all. If the newest does not verify, the
      one before it, with a warning that names the file and the reason.

    Raises:
      CheckpointCorruptError: if there are checkpoints and none verifies.
      CheckpointMismatchError: if the newest sound one differs from `target` or `config`.
      CheckpointVersionError: if it was written in a newer format.
      ProcessError: in the other processes, if process 0 raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import checkpoints
      >>> checkpoints.restore("no_such_folder", {"w": jnp.zeros(3)}) is None
      True
    """
    folder = Path(folder).absolute()
    if processes.several():
        packed = processes.from_first(lambda: pack(read_newest(folder, target, config)))
        read = unpack(packed)
    else:
        read = read_newest(folder, target, config)
    if read is None:
        return None
    return Restored(
        step=read.step, state=placed(read.arrays, read.keys, target), config=read.config
    )


def steps(folder: str | os.PathLike) -> list[int]:
    """Lists the steps that have a checkpoint, in ascending order, verified or not.

    Example:
      >>> from maml_jax import checkpoints
      >>> checkpoints.steps("no_such_folder")
      []
    """
    return sorted(locate(Path(folder)))


def is_sound(folder: str | os.PathLike, step: int) -> bool:
    """Tells whether a checkpoint that is there is what was saved.

    Args:
      folder: where the checkpoints are.
      step: one of `steps(folder)`.

    Returns:
      Whether all of its files verify.

    Raises:
      CheckpointVersionError: if it was written in a newer format.

    Example:
      >>> import tempfile
      >>> from maml_jax import checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = checkpoints.save(folder, 7, {"rate": 0.1}, config={})
      ...     print(checkpoints.is_sound(folder, 7))
      True
    """
    try:
        verify(locate(Path(folder))[step])
    except CheckpointCorruptError:
        return False
    return True


def clear_unfinished(folder: str | os.PathLike) -> None:
    """Removes what killed saves left behind; call it once, before training starts.

    Example:
      >>> from maml_jax import checkpoints
      >>> checkpoints.clear_unfinished("no_such_folder")
    """
    for path in Path(folder).glob(f"{REPLACED}*"):
        settle(path)
    for path in Path(folder).glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)


def check_writable(folder: str | os.PathLike, bytes_needed: int) -> None:
    """Fails now if the first save would fail later; makes the folder.

    Args:
      folder: where the checkpoints will be.
      bytes_needed: free space that is required, in bytes.

    Raises:
      CheckpointWriteError: if the folder cannot be made or written, or space is short.

    Example:
      >>> import tempfile
      >>> from maml_jax import checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoints.check_writable(folder, bytes_needed=1000)
    """
    folder = Path(folder).absolute()
    with _as_write_error(folder, bytes_needed):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"maml_jax")
            os.fsync(probe.fileno())
        if shutil.disk_usage(folder).free < bytes_needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _as_write_error(folder: Path, bytes_needed: int) -> Iterator[None]:
    """Turns a failed file operation into an error that says what to look at."""
    try:
        yield
    except OSError as error:
        there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        raise CheckpointWriteError(
            f"Cannot write to {folder}: {bytes_needed} bytes needed, "
            f"{shutil.disk_usage(there).free} bytes free: {error}."
        ) from error
