"""The command line: flags to a configuration, a configuration to a run; no logic."""

import dataclasses
import pathlib
import sys
import time
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from maml_jax import data, runs
from maml_jax.checkpoints import CheckpointError
from maml_jax.data._folders import cache_folder
from maml_jax.nonfinite import NonFiniteTaskError
from maml_jax.recipes import DEFAULT_PRESET, PRESETS, Config
from maml_jax.training import DivergedError, TrainingStopped

_OUT_OF_MEMORY = 76

_USAGE = """maml-jax: gradient-based meta-learning in JAX

  maml-jax train [PRESET] [flags]   meta-train, evaluate, draw; PRESET defaults to
                                    {default}; --help lists the flags
  maml-jax resume RUN               go on with a stopped run
  maml-jax evaluate RUN [flags]     evaluate a run by another protocol
  maml-jax plot RUN                 draw a run's pictures anew
  maml-jax prepare DATASET          fetch a data set (needs maml-jax[prepare]): {datasets}
  maml-jax presets                  what can be trained
"""

_DATASETS = ("omniglot", "cifar100")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Exits with 0 when done, 1 on an error that a message explains, 2 on wrong usage, 75
    after SIGTERM and 130 after Ctrl-C with the state saved, 76 when memory ran out.

    Args:
      arguments: the words after `maml-jax`; those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else arguments
    command, *rest = words or ["--help"]
    if command in ("-h", "--help", "help"):
        print(_USAGE.format(default=DEFAULT_PRESET, datasets=", ".join(_DATASETS)), end="")
        return
    if command not in _COMMANDS:
        _fail(f"unknown command {command!r}; `maml-jax --help` lists the commands.", code=2)
    _use_compilation_cache()
    try:
        _COMMANDS[command](rest)
    except TrainingStopped as stop:
        sys.exit(stop.exit_code)
    except (CheckpointError, NonFiniteTaskError, DivergedError) as error:
        _fail(str(error))
    except (FileNotFoundError, FileExistsError, ModuleNotFoundError, ValueError) as error:
        _fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail(
            f"the device ran out of memory; lower --meta-batch-size, --features or --query-shot, "
            f"or use --inner fomaml. JAX says: {str(error).splitlines()[0]}",
            code=_OUT_OF_MEMORY,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a run is kept.

    Attributes:
      run_dir: folder of the run; by default runs/PRESET, or the next free number.
    """

    run_dir: pathlib.Path | None = None


def _train(words: list[str]) -> None:
    name = words[0] if words and not words[0].startswith("-") else DEFAULT_PRESET
    flags = words[1:] if words and not words[0].startswith("-") else words
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known presets are {', '.join(PRESETS)}.")

    @tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    def parse(config: Config = PRESETS[name], place: _Place = _Place()) -> tuple[Config, _Place]:
        return config, place

    config, place = tyro.cli(parse, args=flags, prog=f"maml-jax train {name}")
    run_dir = place.run_dir or runs.new_run_dir(name)
    console = Console()
    console.print(f"{name} in {run_dir}, on {jax.devices()[0].device_kind}", highlight=False)
    _report(console, run_dir, lambda: runs.start_run(config, run_dir, console=console))


def _resume(words: list[str]) -> None:
    run_dir = _parse(words, "resume", RUN=pathlib.Path)
    console = Console()
    _report(console, run_dir, lambda: runs.resume_run(run_dir, console=console))


def _report(console: Console, run_dir: pathlib.Path, train) -> None:
    """Runs, then shows what came out; on a stop, how to go on."""
    began = time.monotonic()
    try:
        result = train()
    except TrainingStopped as stop:
        console.print(f"{stop}; the state is saved. Go on with:\n  maml-jax resume {run_dir}")
        raise
    test = result["test"]
    table = Table(title=f"meta-test, {test['num_tasks']:,} tasks", title_justify="left")
    for column in ("", test["metric"], "95% interval"):
        table.add_column(column)
    show = "{:.2%}".format if test["metric"] == "accuracy" else "{:.4f}".format
    half_width = test["half_widths"][test["metric"]][-1]
    table.add_row("meta-learned", show(test["mean"]), "± " + show(half_width))
    for name, value in result["baselines"].items():
        table.add_row(name, show(value), "")
    console.print(table)
    console.print(result["summary"], highlight=False, soft_wrap=True)
    if result["reported"]:
        console.print(f"reported by the source: {result['reported']}", highlight=False)
    console.print(
        f"done in {time.monotonic() - began:.0f} s; result.json and pictures are in {run_dir}",
        highlight=False,
        soft_wrap=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Protocol:
    """Changes to a run's protocol.

    Attributes:
      num_tasks: how many meta-test tasks.
      num_steps: inner steps.
      transductive: normalise query examples together, or with the support set's statistics.
    """

    num_tasks: int | None = None
    num_steps: int | None = None
    transductive: bool | None = None


def _evaluate(words: list[str]) -> None:
    @tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    def parse(
        run: Annotated[pathlib.Path, tyro.conf.Positional], protocol: _Protocol = _Protocol()
    ) -> tuple[pathlib.Path, _Protocol]:
        return run, protocol

    run_dir, protocol = tyro.cli(parse, args=words, prog="maml-jax evaluate")
    changes = {k: v for k, v in dataclasses.asdict(protocol).items() if v is not None}
    print(runs.evaluate_run(run_dir, **changes))


def _plot(words: list[str]) -> None:
    for path in runs.plot_run(_parse(words, "plot", RUN=pathlib.Path)):
        print(path)


def _prepare(words: list[str]) -> None:
    @tyro.conf.configure(tyro.conf.OmitArgPrefixes)
    def parse(
        dataset: Annotated[str, tyro.conf.Positional], data_dir: str | None = None
    ) -> tuple[str, str | None]:
        return dataset, data_dir

    name, data_dir = tyro.cli(parse, args=words, prog="maml-jax prepare")
    print(f"{name} is prepared in {data.prepare(name, data_dir=data_dir)}")


def _presets(words: list[str]) -> None:
    _parse(words, "presets")
    table = Table("preset", "inner rate", "inner steps", "tasks", "outer steps", "reported")
    for name, config in PRESETS.items():
        table.add_row(
            name,
            f"{config.inner_learning_rate:g}",
            f"{config.inner_steps} / {config.test_inner_steps}",
            str(config.meta_batch_size),
            f"{config.outer_steps:,}",
            config.reported,
        )
    Console().print(table)
    print("inner rates are for the mean loss over the support set; steps in training / at test")


def _parse(words: list[str], command: str, **wanted: Any) -> Any:
    """Reads positional words of a command that has no flags."""
    if len(words) != len(wanted) or any(word.startswith("-") for word in words):
        usage = " ".join(["maml-jax", command, *wanted])
        asked = words in (["-h"], ["--help"])
        _fail(f"usage: {usage}", code=0 if asked else 2)
    values = [kind(word) for kind, word in zip(wanted.values(), words, strict=True)]
    return values[0] if values else None


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in a folder that only this user can write."""
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _fail(message: str, *, code: int = 1) -> None:
    print(message if message.startswith("usage") else f"error: {message}", file=sys.stderr)
    sys.exit(code)


_COMMANDS = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "plot": _plot,
    "prepare": _prepare,
    "presets": _presets,
}
