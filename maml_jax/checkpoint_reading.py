"""Reading a checkpoint: verified before it is used, and handed on to other processes as bytes."""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.checkpoint_files import (
    REPLACED,
    STATE,
    CheckpointCorruptError,
    CheckpointMismatchError,
    digest_files,
    load_orbax,
    locate,
    read_arrays,
    read_manifest,
)
from maml_jax.checkpoint_leaves import by_name, describe, digest_array, stored_type


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """A verified checkpoint on the host.

    Attributes:
      step: number of outer steps done, at least 0.
      config: the settings that were saved with it.
      keys: by the name of each leaf, the generator of a typed random key, or None.
      arrays: the leaves, in the order of `keys`.
    """

    step: int
    config: dict[str, Any]
    keys: dict[str, str | None]
    arrays: list[np.ndarray]


def pack(read: Read | None) -> bytes:
    """Writes it as bytes: a line of JSON, then every array as it is in memory.

    Args:
      read: a checkpoint, or None.

    Returns:
      The bytes; none for None.

    Example:
      >>> import numpy as np
      >>> from maml_jax.checkpoint_reading import Read, pack, unpack
      >>> read = Read(step=3, config={}, keys={"w": None}, arrays=[np.ones(2, np.float32)])
      >>> unpack(pack(None)) is None
      True
      >>> print(unpack(pack(read)).arrays)
      [array([1., 1.], dtype=float32)]
    """
    if read is None:
        return b""
    kinds = [(array.dtype.name, array.shape) for array in read.arrays]
    header = {"step": read.step, "config": read.config, "keys": read.keys, "kinds": kinds}
    parts = [array.reshape(-1).view(np.uint8).tobytes() for array in read.arrays]
    return b"".join([json.dumps(header).encode() + b"\n", *parts])


def unpack(packed: bytes) -> Read | None:
    """Reads what `pack` wrote.

    Args:
      packed: the bytes.

    Returns:
      The checkpoint, or None.
    """
    if not packed:
        return None
    line, _, content = packed.partition(b"\n")
    header, arrays, start = json.loads(line), [], 0
    for name, shape in header["kinds"]:
        dtype = np.dtype(name)
        end = start + dtype.itemsize * int(np.prod(shape))
        arrays.append(np.frombuffer(content[start:end], dtype).reshape(shape))
        start = end
    return Read(step=header["step"], config=header["config"], keys=header["keys"], arrays=arrays)


def verify(path: str | os.PathLike) -> dict[str, Any]:
    """Checks every file of one checkpoint against its manifest, and returns that.

    Args:
      path: folder of one checkpoint, as `save` returns it.

    Raises:
      CheckpointCorruptError: names the first file that is missing, extra or changed.
      CheckpointVersionError: as in `read_manifest`.

    Example:
      >>> import tempfile
      >>> from maml_jax import checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = checkpoints.save(folder, 7, {"rate": 0.1}, config={"shots": 5})
      ...     manifest = checkpoints.verify(path)
      >>> manifest["step"]
      7
    """
    path = Path(path)
    manifest = read_manifest(path)
    if path.name.removeprefix(REPLACED) != f"{manifest['step']:08d}":
        raise CheckpointCorruptError(f"{path} holds step {manifest['step']}.")
    try:
        found = digest_files(path)
    except OSError as error:
        raise CheckpointCorruptError(f"{path} cannot be read: {error}.") from error
    for name in sorted(manifest["files"].keys() | found.keys()):
        wanted, got = manifest["files"].get(name, "no file"), found.get(name, "no file")
        if wanted != got:
            raise CheckpointCorruptError(f"{path / name} was {wanted} and is {got}.")
    return manifest


def read_newest(folder: Path, target: Any, config: Mapping[str, Any] | None) -> Read | None:
    """Reads the newest checkpoint that verifies, to the host.

    Args:
      folder: where the checkpoints are.
      target: as in `maml_jax.checkpoints.restore`.
      config: likewise.

    Returns:
      The checkpoint, or None if there is none at all.

    Raises:
      CheckpointCorruptError: if there are checkpoints and none verifies.
      CheckpointMismatchError: if the newest sound one differs from `target` or `config`.
      CheckpointVersionError: if it was written in a newer format.
    """
    while True:
        listed = locate(folder)
        if listed:
            load_orbax()  # Before what is there is verified: a run that trains may remove it.
        try:
            return _newest_sound(listed, folder, target, config)
        except (CheckpointCorruptError, OSError, ValueError):
            # A run that trains removes its older ones: what is gone was not damaged.
            if all(path.exists() for path in listed.values()):
                raise


def _newest_sound(
    listed: dict[int, Path], folder: Path, target: Any, config: Mapping[str, Any] | None
) -> Read | None:
    """Reads the newest of some checkpoints that verifies."""
    reasons = []
    for _, path in sorted(listed.items(), reverse=True):
        try:
            read = _read_one(path, target, config=config)
        except CheckpointCorruptError as error:
            reasons.append(str(error))
            continue
        if reasons:
            message = f"Fell back to the checkpoint of step {read.step}: {' '.join(reasons)}"
            warnings.warn(message, stacklevel=5)
        return read
    if reasons:
        raise CheckpointCorruptError(f"No checkpoint in {folder} verifies: {' '.join(reasons)}")
    return None


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives settings as JSON gives them back.

    Args:
      config: plain values.

    Returns:
      A copy.

    Raises:
      ValueError: if JSON cannot hold them.
    """
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config must be what JSON can hold, got {config}: {error}.") from error


def _read_one(path: Path, target: Any, *, config: Mapping[str, Any] | None) -> Read:
    """Verifies one checkpoint, compares it with what is wanted, and reads it."""
    manifest = verify(path)
    for name, value in as_json(config or {}).items():
        if (saved := manifest["config"].get(name, "nothing")) != value:
            raise CheckpointMismatchError(f"{path}: config {name}: saved {saved}, wanted {value}.")
    wanted = by_name(target)
    leaves = {leaf["path"]: leaf for leaf in manifest["leaves"]}
    for name in wanted | leaves:
        saved = leaves[name]["type"] if name in leaves else "nothing"
        want = describe(wanted[name]) if name in wanted else "nothing"
        if saved != want:
            raise CheckpointMismatchError(f"{path}: leaf {name}: saved {saved}, wanted {want}.")
    arrays = read_arrays(path / STATE, [stored_type(wanted[name]) for name in leaves])
    for (name, leaf), array in zip(leaves.items(), arrays, strict=True):
        if digest_array(array) != leaf["sha256"]:
            raise CheckpointCorruptError(f"{path}: leaf {name} is not what was saved.")
    keys = {name: leaf["key_impl"] for name, leaf in leaves.items()}
    return Read(step=manifest["step"], config=manifest["config"], keys=keys, arrays=arrays)
