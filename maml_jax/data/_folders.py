"""Where data sets and caches live: the one place that reads environment variables."""

import os
import pathlib


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
