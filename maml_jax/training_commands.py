"""`maml-jax train` and `maml-jax resume`: alone, or as one of several processes."""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from maml_jax import processes, reporting, runs
from maml_jax.command_tools import RunFolder, parse, preset_first
from maml_jax.processes import Cluster
from maml_jax.recipes import PRESETS, Config, named_by_tasks
from maml_jax.reporting import say
from maml_jax.run_folder import resume_command
from maml_jax.stop_signals import Terminated, sigterm_raises
from maml_jax.streams import LastingConsole
from maml_jax.training import TrainingStopped

_ALONE = Cluster()


def train(words: list[str]) -> None:
    """Runs `maml-jax train`.

    Args:
      words: what follows the command.
    """
    name, rest = preset_first(words)
    hint = f"(default: runs/{name}, or a name of other tasks' own, or the next number)"
    folder = tyro.conf.arg(metavar="FOLDER", help_behavior_hint=hint)

    def asked(
        config: Config = PRESETS[name],
        *,
        run_dir: Annotated[pathlib.Path | None, folder] = None,
        cluster: Cluster = _ALONE,
    ) -> tuple[Config, pathlib.Path | None, Cluster]:
        """Meta-trains a preset, evaluates it on meta-test tasks, and draws what came out.

        Flags change the preset's settings. Name another preset before the flags, as in
        `maml-jax train sinusoid-10shot-finn2017`; `maml-jax presets` lists them.

        Args:
          config: the settings, of which the preset gives the defaults.
          run_dir: folder to keep the run in; it must hold no run yet.
          cluster: the processes that train together.
        """
        return config, run_dir, cluster

    command = f"train {name}" if rest != words else "train"
    config, run_dir, cluster = parse(asked, rest, command)
    name, config = named_by_tasks(name, config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_sigterm_raises(cluster))
        console = _join(cluster)
        folder = run_dir or stack.enter_context(_claimed(name))
        devices, several = jax.devices(), processes.several()
        places = f" in {jax.process_count()} processes" if several else ""
        say(console, f"{name} in {folder}, on {len(devices)} x {devices[0].device_kind}{places}")
        _report(console, folder, lambda: runs.start_run(config, folder, console=console))


def resume(words: list[str]) -> None:
    """Runs `maml-jax resume`.

    Args:
      words: what follows the command.
    """

    def asked(run: RunFolder, *, cluster: Cluster = _ALONE) -> tuple[pathlib.Path, Cluster]:
        """Goes on with a run from its newest checkpoint, as if it had never stopped.

        A run that is trained to the end is only evaluated and drawn again.

        Args:
          run: the run's folder.
          cluster: the processes that train together; process 0 needs the folder.
        """
        return run, cluster

    run_dir, cluster = parse(asked, words, "resume")
    with _sigterm_raises(cluster):
        console = _join(cluster)
        _report(console, run_dir, lambda: runs.resume_run(run_dir, console=console))


@contextlib.contextmanager
def _claimed(name: str) -> Iterator[pathlib.Path]:
    """Takes a new folder, and gives it back if nothing was begun in it.

    Of several processes the first takes it, and all name it.
    """

    def claim() -> bytes:
        return os.fsencode(runs.claim_run_dir(name))

    path = pathlib.Path(os.fsdecode(processes.from_first(claim)))
    try:
        yield path
    finally:
        if processes.is_first():
            with contextlib.suppress(OSError):  # It is not empty, as after every run.
                path.rmdir()
                path.parent.rmdir()


def _sigterm_raises(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """Lets SIGTERM end the command in good order; of several processes JAX has its handler."""
    return contextlib.nullcontext() if cluster.distributed else sigterm_raises()


def _join(cluster: Cluster) -> Console:
    """Joins the other processes, and gives the console: a silent one in all but the first."""
    processes.connect(cluster)
    return LastingConsole(quiet=cluster.distributed and not processes.is_first())


def _report(console: Console, run_dir: pathlib.Path, run: Callable[[], dict[str, Any]]) -> None:
    """Runs, then shows what came out; on a stop, how to go on."""
    began = time.monotonic()
    try:
        result = run()
    except (TrainingStopped, Terminated, KeyboardInterrupt) as stop:
        if isinstance(stop, TrainingStopped):
            say(console, f"{stop}; the state is saved.")
        if isinstance(stop, Terminated):
            say(console, "stopped by SIGTERM; there was nothing to save.")
        _say_how_to_go_on(console, run_dir)
        raise
    except (RuntimeError, ValueError) as error:
        if processes.connected() and processes.is_lost_process(error):
            _say_how_to_go_on(console, run_dir)
        raise
    console.print(reporting.result_table(result))
    say(console, result["summary"])
    if result["reported"]:
        say(console, f"reported by the source: {result['reported']}")
    seconds = time.monotonic() - began
    say(console, f"Done in {seconds:.0f} s; result.json and pictures are in {run_dir}")


def _say_how_to_go_on(console: Console, run_dir: pathlib.Path) -> None:
    if (run_dir / "config.json").exists():
        again = ", in every process with --distributed" if processes.several() else ""
        say(console, f"Go on with{again}:\n  {resume_command(run_dir)}")
