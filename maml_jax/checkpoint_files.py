"""Files of one checkpoint: arrays through Orbax, digests, and renames that a kill cannot tear."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT_VERSION = 1
"""Version of the folder layout and of the manifest; a reader refuses newer ones."""

STATE, MANIFEST, SEAL = "state", "manifest.json", "manifest.sha256"
TEMPORARY, REPLACED = ".tmp-", ".replaced-"
_STEP_NAME = re.compile(r"(\.replaced-)?(\d{8,})")
# TensorStore reports a failed file operation as a ValueError that holds one of these.
_WRITE_FAILED = re.compile(
    r"os_error_code='\d+'|RESOURCE_EXHAUSTED|PERMISSION_DENIED|NOT_FOUND|UNAVAILABLE|DATA_LOSS"
)


class CheckpointError(Exception):
    """Anything that stops a checkpoint from being written or read."""


class CheckpointCorruptError(CheckpointError):
    """Checkpoints exist, but what is on disk is not what was saved."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint is sound, but it is of another model, optimizer or config."""


class CheckpointVersionError(CheckpointError):
    """The checkpoint was written in a newer format than this library reads."""


class CheckpointWriteError(CheckpointError):
    """The checkpoint cannot be written; those already there are untouched."""


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the manifest of one checkpoint and checks its own digest.

    Args:
      path: folder of one checkpoint, as `save` returns it.

    Returns:
      `format_version`, `step`, `config`, `versions` (of the libraries that wrote it),
      `files` (by path: size in bytes and SHA-256) and `leaves` (in tree order: `path`; `type`,
      which is dtype and shape; `key_impl`, the generator of a typed random key, else None;
      `sha256`).

    Raises:
      CheckpointCorruptError: if the manifest is missing or not as written.
      CheckpointVersionError: if its format is newer than `FORMAT_VERSION`.

    Example:
      >>> import tempfile
      >>> from maml_jax import checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = checkpoints.save(folder, 7, {"rate": 0.1}, config={"shots": 5})
      ...     manifest = checkpoints.read_manifest(path)
      >>> manifest["config"]
      {'shots': 5}
    """
    path = Path(path)
    try:
        text, seal = (path / MANIFEST).read_bytes(), (path / SEAL).read_bytes()
    except OSError as error:
        raise CheckpointCorruptError(f"{path}: cannot read the manifest: {error}.") from error
    if seal != _seal_line(text):
        raise CheckpointCorruptError(f"{path / MANIFEST} is not what {SEAL} says.")
    manifest = json.loads(text)
    if (version := manifest["format_version"]) > FORMAT_VERSION:
        raise CheckpointVersionError(
            f"{path} has format version {version}, this maml_jax reads up to {FORMAT_VERSION}."
        )
    return manifest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the log lines of Orbax; what fails is raised too, so not even errors are shown."""
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)


def load_orbax() -> Any:
    """Imports Orbax, which takes seconds the first time.

    Returns:
      The module.

    Example:
      >>> from maml_jax.checkpoint_files import load_orbax
      >>> load_orbax().__name__
      'orbax.checkpoint'
    """
    with _quiet():
        import orbax.checkpoint as ocp

        return ocp


@contextlib.contextmanager
def _orbax(path: Path) -> Iterator[tuple[Any, Any]]:
    """Gives Orbax and a checkpointer, its log lines held back."""
    ocp = load_orbax()
    with _quiet():
        # Orbax 0.12 takes the folder for a glob pattern when it merges its OCDBT files; with
        # brackets in it the pattern finds nothing, and what was saved cannot be read.
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt="[" not in str(path), multiprocessing_options=alone
        )
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield ocp, checkpointer


def write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """Writes arrays by their position, so that no name or node type can trip Orbax."""
    # Orbax takes neither an empty tree nor an array without elements.
    item = {f"{i:05d}": array for i, array in enumerate(arrays) if array.size}
    if item:
        with _orbax(path) as (ocp, checkpointer):
            try:
                checkpointer.save(path, args=ocp.args.PyTreeSave(item))
            except ValueError as error:
                if _WRITE_FAILED.search(str(error)):
                    raise OSError(str(error)) from error
                raise


def read_arrays(path: Path, types: list[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
    """Reads arrays of known types to the host, where their bits can be checked."""
    arrays = {i: np.zeros(kind.shape, kind.dtype) for i, kind in enumerate(types) if not kind.size}
    item = {f"{i:05d}": kind for i, kind in enumerate(types) if kind.size}
    if item:
        with _orbax(path) as (ocp, checkpointer):
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item}
            restore_args = ocp.args.PyTreeRestore(item, restore_args=as_numpy)
            read = checkpointer.restore(path, args=restore_args)
        arrays |= {int(name): array for name, array in read.items()}
    return [arrays[i] for i in range(len(types))]


def write_manifest(
    path: Path, *, step: int, config: dict[str, Any], leaves: list[dict[str, Any]]
) -> None:
    """Describes the files under `path`, seals the description, and flushes all."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "config": config,
        "versions": {name: _version(name) for name in ("maml-jax", "jax", "orbax-checkpoint")},
        "files": digest_files(path),
        "leaves": leaves,
    }
    text = json.dumps(manifest, indent=1).encode()
    (path / MANIFEST).write_bytes(text)
    (path / SEAL).write_bytes(_seal_line(text))
    for written in (path, *path.rglob("*")):
        _flush(written)


def publish(temporary: Path, final: Path) -> None:
    """Gives a complete checkpoint its name; one of that name is in reach throughout."""
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        settle(replaced)
        final.rename(replaced)
    try:
        temporary.rename(final)
        _flush(final.parent)
    finally:
        settle(replaced)


def settle(replaced: Path) -> None:
    """Ends a replacement, killed or not: forward if the new one is there, else back."""
    final = replaced.with_name(replaced.name.removeprefix(REPLACED))
    if replaced.exists():
        remove(replaced) if final.exists() else replaced.rename(final)


def remove(path: Path) -> None:
    """Deletes a checkpoint; half deleted, it no longer looks like one."""
    doomed = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    path.rename(doomed / path.name)
    shutil.rmtree(doomed)


def locate(folder: Path) -> dict[int, Path]:
    """Finds the checkpoints by step, with those that a killed save was replacing."""
    if not folder.exists():
        return {}
    found = {path: _STEP_NAME.fullmatch(path.name) for path in folder.iterdir()}
    # The final name sorts after the dotted one, and so wins.
    return {int(match[2]): path for path, match in sorted(found.items()) if match}


def digest_files(path: Path) -> dict[str, str]:
    """Returns size and SHA-256 of each file below `path`, the manifest's two apart."""
    digests = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if name not in (MANIFEST, SEAL) and not file.is_dir():
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            digests[name] = f"{file.stat().st_size} bytes, sha256 {digest}"
    return digests


def _seal_line(text: bytes) -> bytes:
    """Returns the line by which `sha256sum --check` knows the manifest."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def _flush(path: Path) -> None:
    """Makes the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
