"""The folder of a run: where it is, and the files in it that are not checkpoints or log."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shlex
from typing import Any

import jax
import numpy as np

from maml_jax.atomic_files import written_whole
from maml_jax.checks import nearest
from maml_jax.evaluation import Evaluation
from maml_jax.host import library_versions
from maml_jax.recipes import Config

_UNCHECKED = ("data_dir", "checkpoint_every", "test_tasks", "source", "reported")


def claim_run_dir(name: str, root: str | os.PathLike = "runs") -> pathlib.Path:
    """Makes a folder that no run has: `runs/NAME`, then `runs/NAME-2` and so on.

    Of two commands that are started at once, each gets its own.

    Args:
      name: of the run.
      root: folder of all runs.

    Returns:
      The folder, empty.

    Example:
      >>> import tempfile
      >>> from maml_jax.run_folder import claim_run_dir
      >>> with tempfile.TemporaryDirectory() as root:
      ...     [claim_run_dir("first", root=root).name for _ in range(2)]
      ['first', 'first-2']
    """
    for number in itertools.count(1):
        path = pathlib.Path(root) / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def resume_command(run_dir: str | os.PathLike) -> str:
    """Gives the command that goes on with a run.

    Args:
      run_dir: the run's folder.

    Returns:
      A line for a shell.

    Example:
      >>> from maml_jax.run_folder import resume_command
      >>> resume_command("runs/my first")
      "maml-jax resume 'runs/my first'"
    """
    return f"maml-jax resume {shlex.quote(os.fspath(run_dir))}"


def write_config(run_dir: str | os.PathLike, config: Config) -> None:
    """Writes the configuration of a run, with the versions of the libraries it starts with.

    Args:
      run_dir: the run's folder; made if missing.
      config: the configuration.
    """
    content = {"config": dataclasses.asdict(config), "versions": library_versions()}
    write_json(pathlib.Path(run_dir) / "config.json", content)


def read_config(run_dir: str | os.PathLike) -> Config:
    """Reads the configuration of a run.

    Args:
      run_dir: the run's folder.

    Returns:
      The configuration.

    Raises:
      FileNotFoundError, ValueError: as in `read_settings`.
    """
    return Config(**read_settings(run_dir))


def read_settings(run_dir: str | os.PathLike) -> dict[str, Any]:
    """Reads the settings of a run as they were written, all of them good.

    Args:
      run_dir: the run's folder.

    Returns:
      The arguments of its `Config`; a run of an older version lacks the newer ones.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if the file is damaged, or has a field or value that this version does not
        know.
    """
    path = pathlib.Path(run_dir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run_dir} holds no run (no config.json); start one with `maml-jax train`."
        )
    try:
        return _as_settings(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as it was written: {error}") from error


def _as_settings(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ValueError("it must hold an entry 'config'.")
    known = [field.name for field in dataclasses.fields(Config)]
    unknown = sorted(set(content["config"]) - set(known))
    if unknown:
        raise ValueError(
            f"it has fields that this version does not know: {unknown}; use the version named in "
            f"the file{nearest(unknown[0], known)}"
        )
    Config(**content["config"])
    return content["config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What `result.json` tells of a run's evaluation.

    Attributes:
      test: the evaluation on meta-test tasks.
      baselines: from a name to the same number of something simpler.
      outer_steps: after how many outer steps.
    """

    test: Evaluation
    baselines: dict[str, float]
    outer_steps: int


def read_result(run_dir: pathlib.Path) -> Result | None:
    """Reads the result of a run.

    Args:
      run_dir: the run's folder.

    Returns:
      The result, or None if there is none yet.

    Raises:
      ValueError: if the file is not as it was written.
    """
    path = run_dir / "result.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(Evaluation)]
        return Result(
            test=Evaluation(**{name: content["test"][name] for name in names}),
            baselines=dict(content["baselines"]),
            outer_steps=content["outer_steps"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not as it was written; remove it, and `maml-jax plot` evaluates again."
        ) from error


def checked_settings(config: Config) -> dict[str, Any]:
    """Gives what must be equal for a checkpoint to be this run's.

    Args:
      config: the run's configuration.

    Returns:
      Plain values: the configuration without what no state depends on (where the data lie,
      how often to save, the final evaluation, the publication), and whether JAX has 64 bits.
    """
    settings = dataclasses.asdict(config)
    for name in _UNCHECKED:
        del settings[name]
    return {**settings, "x64": jax.dtypes.canonicalize_dtype(float) == np.float64}


def comparable_settings(written: dict[str, Any]) -> dict[str, Any]:
    """Gives those checked settings that the checkpoints of a run can have.

    A field that is newer than the run is in none of its files: its default is what the run had.

    Args:
      written: what `read_settings` gave.

    Returns:
      As `checked_settings`, without what was not written.
    """
    settings = checked_settings(Config(**written))
    return {name: settings[name] for name in settings if name in written or name == "x64"}


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a file whole or not at all.

    Args:
      path: the file; its folder is made if missing.
      content: plain values.

    Raises:
      OSError: if it cannot be written, with the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
