"""Downloads and writes the data sets that the readers of this package expect."""

import importlib
import os
import pathlib

from maml_jax.data._folders import data_folder

_NAMES = ("omniglot", "cifar100")


def prepare(name: str, *, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Downloads one data set and writes it where `omniglot` or `cifar_fs` read it.

    The only function of `maml_jax.data` that uses the network, and the only one that
    needs TensorFlow. TFDS writes to a folder of another name and renames it at the end,
    so a run that is killed leaves nothing that is taken for the data set: run it again.
    A data set that is there already is left as it is.

    Args:
      name: "omniglot" (16 MB to download) or "cifar100" (169 MB).
      data_dir: the folder to write to; None means the environment variable
        MAML_JAX_DATA_DIR, then TFDS's default.

    Returns:
      The folder of the data set's version.

    Raises:
      ValueError: if `name` is no data set of this package.
      ModuleNotFoundError: if what only the preparation needs is not installed.

    Example:
      >>> from maml_jax.data import prepare
      >>> folder = prepare("omniglot", data_dir="data")  # doctest: +SKIP
    """
    if name not in _NAMES:
        raise ValueError(f"name must be one of {', '.join(_NAMES)}, got {name!r}.")
    for module in ("tensorflow", "importlib_resources"):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise ModuleNotFoundError(
                f"Preparing a data set needs {module}, which is not installed; run: "
                'pip install "maml-jax[prepare]"',
                name=module,
            ) from error
    import tensorflow_datasets as tfds

    folder = data_folder(data_dir)
    builder = tfds.builder(name, data_dir=os.fspath(folder), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return pathlib.Path(os.fspath(builder.data_path))
