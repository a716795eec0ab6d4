"""The command line: flags to a configuration, a configuration to a run; no logic."""

import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import jax
import tyro
from rich.console import Console

from maml_jax import bench, data, exit_codes, processes, reporting, runs, training_commands
from maml_jax.checkpoints import CheckpointError
from maml_jax.checks import nearest
from maml_jax.command_tools import (
    RunFolder,
    fail,
    parse,
    preset_first,
    show_warning,
    use_compilation_cache,
)
from maml_jax.devices import use_cpu_cores
from maml_jax.nonfinite import NonFiniteTaskError
from maml_jax.recipes import DEFAULT_PRESET, PRESETS, Config
from maml_jax.stop_signals import Terminated
from maml_jax.streams import leave
from maml_jax.training import DivergedError, TrainingStopped

_EXPLAINED = (
    CheckpointError,
    DivergedError,
    ModuleNotFoundError,
    NonFiniteTaskError,
    OSError,
    processes.ProcessError,
    ValueError,
)

_Prepared = Literal["omniglot", "cifar100"]

_USAGE = """maml-jax: gradient-based meta-learning in JAX

  maml-jax train [PRESET] [flags]   meta-train, evaluate, draw; PRESET is
                                    {default} if left out
  maml-jax resume RUN               go on with a stopped run
  maml-jax evaluate RUN [flags]     evaluate a run, also by another protocol
  maml-jax plot RUN                 draw a run's pictures anew
  maml-jax prepare DATASET          fetch {datasets};
                                    needs: pip install "maml-jax[prepare]"
  maml-jax presets                  list what can be trained
  maml-jax bench [PRESET] [flags]   how fast it is here, and with what setting
  maml-jax diagnose [PRESET] [flags], or diagnose RUN
                                    mean or sum, and what else: how the gradients
                                    of the tasks relate, and what follows

RUN is the folder of a run. `maml-jax COMMAND --help` tells more.
"""

_AS_IN_THE_RUN = tyro.conf.arg(help_behavior_hint="(default: as in the run)")


def entry() -> None:
    """Runs the program `maml-jax`: as `main`, but an exit code stays what it is."""
    try:
        main()
    except KeyboardInterrupt:
        leave(exit_codes.INTERRUPTED)  # Another Ctrl-C, while the first was being answered.
    except SystemExit as end:
        # Processes that JAX has joined end together, each after the last word of the others.
        if isinstance(end.code, int) and end.code != 0 and not processes.connected():
            leave(end.code)
        raise


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Exits with 0 when done, 1 on an error that a message explains, 2 on wrong usage, 75
    after SIGTERM and 130 after Ctrl-C with the state saved, 76 when memory ran out, 77 when
    another process of the run is gone. In a program use `entry`: an interpreter that is torn
    down while JAX computes may end in SIGSEGV.

    Args:
      arguments: the words after `maml-jax`; those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else arguments
    command, *rest = words or ["--help"]
    if command in ("-h", "--help", "help"):
        datasets = " or ".join(get_args(_Prepared))
        print(_USAGE.format(default=DEFAULT_PRESET, datasets=datasets), end="")
        return
    if command not in _COMMANDS:
        message = f"there is no command {command!r}; `maml-jax --help` lists them"
        fail(message + nearest(command, _COMMANDS), code=exit_codes.WRONG_USAGE)
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        _run(_COMMANDS[command], rest)


def _run(command: Callable[[list[str]], None], words: list[str]) -> None:
    """Runs one command; turns what can go wrong into a message and an exit code."""
    try:
        use_compilation_cache()
        use_cpu_cores()
        command(words)
    except TrainingStopped as stop:
        sys.exit(stop.exit_code)
    except Terminated:
        sys.exit(exit_codes.STOPPED)
    except KeyboardInterrupt:
        fail("interrupted.", code=exit_codes.INTERRUPTED)
    except MemoryError as error:
        fail(str(error), code=exit_codes.OUT_OF_MEMORY)
    except Exception as error:
        if processes.connected() and processes.is_lost_process(error):
            lost = f"another process is gone: {str(error).splitlines()[0]}"
            fail(lost, code=exit_codes.LOST_PROCESS)
        if isinstance(error, _EXPLAINED):
            fail(str(error))
        if processes.connected():
            traceback.print_exc()
            fail(f"{type(error).__name__} in process {jax.process_index()}.")
        raise


def _evaluate(words: list[str]) -> None:
    def read(config: Config) -> tuple[pathlib.Path, dict[str, Any]]:
        def evaluate(
            run: RunFolder,
            *,
            num_tasks: Annotated[int, _AS_IN_THE_RUN] = config.test_tasks,
            num_steps: Annotated[int, _AS_IN_THE_RUN] = config.test_inner_steps,
            transductive: Annotated[bool, _AS_IN_THE_RUN] = config.transductive,
        ) -> tuple[pathlib.Path, dict[str, Any]]:
            """Evaluates the best parameters of a run on meta-test tasks.

            Its result.json stays as it is.

            Args:
              run: the run's folder.
              num_tasks: how many tasks.
              num_steps: inner steps.
              transductive: normalise query examples together, or with the support set's statistics.
            """
            changes = {"num_tasks": num_tasks, "num_steps": num_steps, "transductive": transductive}
            return run, changes

        return parse(evaluate, words, "evaluate")

    run_dir, _ = read(Config())
    run_dir, changes = read(runs.read_config(run_dir))  # Its settings are the defaults.
    print(runs.evaluate_run(run_dir, **changes))


def _plot(words: list[str]) -> None:
    what = "Draws the pictures of a run anew, from its log, result and best parameters."
    for path in runs.plot_run(_named_run(words, "plot", what)):
        print(path)


def _prepare(words: list[str]) -> None:
    folder = tyro.conf.arg(
        metavar="FOLDER", help_behavior_hint="(default: $MAML_JAX_DATA_DIR, then that of TFDS)"
    )

    def prepare(
        dataset: Annotated[_Prepared, tyro.conf.Positional],
        *,
        data_dir: Annotated[str | None, folder] = None,
    ) -> tuple[str, str | None]:
        """Downloads a data set and writes it where `maml-jax train` reads it.

        Args:
          dataset: omniglot (16 MB), or cifar100 (169 MB), which cifar_fs and fc100 read.
          data_dir: folder of prepared data sets.
        """
        return dataset, data_dir

    name, data_dir = parse(prepare, words, "prepare")
    print(f"{name} is prepared in {data.prepare(name, data_dir=data_dir)}")


def _presets(words: list[str]) -> None:
    def presets() -> None:
        """Lists what `maml-jax train` knows by name, and what its source reports."""

    parse(presets, words, "presets")
    reporting.report_presets()


def _bench(words: list[str]) -> None:
    name, words = preset_first(words)

    def measure(config: Config = PRESETS[name], *, budget: float = 60.0) -> tuple[Config, float]:
        """Measures outer steps of a preset on noise: where, and how, tasks run fastest.

        Args:
          config: the settings, of which the preset gives the defaults.
          budget: seconds after which no further setting is begun.
        """
        return config, budget

    config, budget = parse(measure, words, f"bench {name}")
    reporting.report_bench(Console(), name, bench.measure(config, budget=budget))


def _diagnose(words: list[str]) -> None:
    console = Console()
    if words and words[0] not in PRESETS and (pathlib.Path(words[0]) / "config.json").exists():
        what = "Measures how task gradients of a run relate: untrained, at its best, at its end."
        files = "Writes diagnosis.json and diagnosis.png into its folder."
        run_dir = _named_run(words, "diagnose", what, files)
        reporting.report_diagnoses(console, runs.diagnose_run(run_dir), run_dir)
        return
    name, rest = preset_first(words, "; or name the folder of a run")
    default = f"diagnosis/{name}"
    folder = tyro.conf.arg(metavar="FOLDER", help_behavior_hint=f"(default: {default})")

    def diagnose(
        config: Config = PRESETS[name],
        *,
        budget: float = 60.0,
        output: Annotated[pathlib.Path, folder] = pathlib.Path(default),
    ) -> tuple[Config, float, pathlib.Path]:
        """Trains a preset for a little while and measures how its task gradients relate.

        Says whether mean or sum matters to the optimizer, how many tasks a step should have,
        whether tasks are correlated, in conflict or broken, and what to do.

        Args:
          config: the settings, of which the preset gives the defaults.
          budget: seconds after which no further stretch of training is begun.
          output: folder of diagnosis.json and diagnosis.png.
        """
        return config, budget, output

    config, budget, output = parse(diagnose, rest, f"diagnose {name}")
    found = runs.diagnose_preset(config, budget=budget)
    reporting.report_diagnoses(console, found, output)


def _named_run(words: list[str], command: str, *what: str) -> pathlib.Path:
    """Reads the words after a command that takes the folder of a run and nothing else."""

    def named(run: RunFolder) -> pathlib.Path:
        return run

    named.__doc__ = "\n\n".join([*what, "Args:\n  run: the run's folder."])
    return parse(named, words, command)


_COMMANDS = {
    "train": training_commands.train,
    "resume": training_commands.resume,
    "evaluate": _evaluate,
    "plot": _plot,
    "prepare": _prepare,
    "presets": _presets,
    "bench": _bench,
    "diagnose": _diagnose,
}
