"""Where data sets and caches live: the one place that reads environment variables."""

import os
import pathlib
import shlex
import stat


def data_folder(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns the folder that TensorFlow Datasets keeps its data sets in.

    Args:
      data_dir: the folder; None means the environment variable MAML_JAX_DATA_DIR, then
        TFDS's own TFDS_DATA_DIR, then ~/tensorflow_datasets.
    """
    chosen = data_dir or os.environ.get("MAML_JAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return pathlib.Path(chosen or "~/tensorflow_datasets").expanduser()


def cache_folder() -> pathlib.Path:
    """Returns MAML_JAX_CACHE_DIR, or ~/.cache/maml_jax where that is not set."""
    return pathlib.Path(os.environ.get("MAML_JAX_CACHE_DIR") or "~/.cache/maml_jax").expanduser()


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Makes a folder, and those above it that are missing, for this user alone.

    Args:
      path: the folder; one that is there stays as it is.

    Raises:
      OSError: if it cannot be made, or is no folder.
    """
    path = pathlib.Path(path)
    # `Path.mkdir(parents=True, mode=...)` would give the mode to the last one only.
    for folder in [*reversed(path.parents), path]:
        if not folder.exists() or folder == path:
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


def private_folder(path: str | os.PathLike) -> pathlib.Path:
    """Makes a folder like `make_folder`, for files that are run as programs.

    Args:
      path: the folder.

    Raises:
      OSError: if it cannot be made, or somebody else could put a file in it.
    """
    path = make_folder(path)
    found = path.stat()
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user, who could change what is run")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"others can write to {path}; run: chmod go-w {shlex.quote(str(path))}"
        )
    return path
