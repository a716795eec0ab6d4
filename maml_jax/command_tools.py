"""What all commands share: reading their words, warning, ending with a message."""

import pathlib
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import jax
import tyro

from maml_jax import exit_codes, processes
from maml_jax.checks import nearest
from maml_jax.data._folders import cache_folder, private_folder
from maml_jax.recipes import DEFAULT_PRESET, PRESETS
from maml_jax.streams import complain, leave

RunFolder = Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""An argument that names the folder of a run."""


def preset_first(words: list[str], hint: str = "") -> tuple[str, list[str]]:
    """Takes the preset's name off the words, if they begin with one.

    Args:
      words: what follows the command.
      hint: what else the first word might have been, for the message.

    Returns:
      The preset's name, the default one if there is none, and the other words.
    """
    named = bool(words) and not words[0].startswith("-")
    name = words[0] if named else DEFAULT_PRESET
    if name not in PRESETS:
        message = f"there is no preset {name!r}; `maml-jax presets` lists them" + hint
        fail(message + nearest(name, PRESETS), code=exit_codes.WRONG_USAGE)
    return name, words[named:]


def parse(function: Callable[..., Any], words: list[str], command: str) -> Any:
    """Reads the words after a command as the function's arguments, and calls it.

    Args:
      function: its docstring is the help text.
      words: what follows the command.
      command: as in the help text.

    Returns:
      What the function returns.
    """
    prog = f"maml-jax {command}"
    return tyro.cli(function, args=words, prog=prog, config=(tyro.conf.OmitArgPrefixes,))


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs where only this user can write, or as JAX is set."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = private_folder(private_folder(cache_folder()) / "compiled")
    except OSError as error:
        warnings.warn(f"compiled programs are not kept for the next run: {error}.", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Shows a warning without the place in our source that it comes from.

    JAX warns of a kept program that it cannot read and compiles it anew, but keeps the file: the
    warning would come back at each start, so it is shown with what ends it.

    Args:
      message: the warning.
      category: not shown.
      filename: not shown.
      lineno: not shown.
      file: not used.
      line: not shown.
    """
    del category, filename, lineno, file, line
    if str(message).startswith("Error reading persistent compilation cache entry"):
        folder = shlex.quote(str(jax.config.values["jax_compilation_cache_dir"]))
        message = (
            "a kept compiled program is damaged, or another run is just writing it: compiled anew; "
            f"if this comes back, run: rm -r {folder}"
        )
    complain(f"warning: {message}")


def fail(message: str, *, code: int = exit_codes.ERROR) -> NoReturn:
    """Ends the process with a message.

    Args:
      message: what went wrong, and what to do.
      code: the exit code.
    """
    complain(f"error: {message}")
    if processes.connected():
        leave(code)
    sys.exit(code)
