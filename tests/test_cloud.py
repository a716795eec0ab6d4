"""What launches on Cloud TPU: the file for SkyPilot, and the script around gcloud.

    python -m pytest tests/test_cloud.py

Nothing is launched. The oracle for names and values is the documentation of SkyPilot
(https://docs.skypilot.co/en/latest/reference/yaml-spec.html) and of gcloud
(https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm).
"""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest
import yaml

from maml_jax import cli, training_commands
from maml_jax.recipes import PRESETS

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "cloud" / "tpu_vm.sh"
TASK = yaml.safe_load((ROOT / "cloud" / "skypilot.yaml").read_text())

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@pytest.fixture
def gcloud(tmp_path):
    """A gcloud that writes down how it is called, and fails where a file `fails` says so."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(
        "#!/usr/bin/env bash\n"
        f'printf "%s\\0" "$@" >> {tmp_path}/calls; printf "\\n" >> {tmp_path}/calls\n'
        f'[ ! -e {tmp_path}/fails ] || [[ "$*" != *$(cat {tmp_path}/fails)* ]] || exit 75\n'
    )
    program.chmod(0o755)

    def calls():
        log = tmp_path / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [["gcloud", *line.rstrip("\0").split("\0")] for line in lines]

    return calls


@pytest.fixture
def launch(tmp_path):
    """Runs the script in an empty folder, with the fake gcloud first on the PATH."""

    def run(*words, path=None):
        environment = {
            **os.environ,
            "PATH": path or f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        command = [shutil.which("bash"), str(SCRIPT), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def printed(result):
    """The commands of a dry run, read as a shell would."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def tpu(verb, *words, zone="us-west4-a"):
    return ["gcloud", "compute", "tpus", "tpu-vm", verb, *words, f"--zone={zone}", "--quiet"]


def test_one_host(gcloud, launch):
    """Every command, in order; none is run."""
    result = launch("--zone", "us-west4-a", "--dry-run", "glyphs-5way-1shot")
    commands = printed(result)
    archive = commands[1][-1] + "/maml-jax.tar.gz"
    install = commands[4][-3].removeprefix("--command=")
    packed = ["pyproject.toml", "README.md", "LICENSE", "maml_jax"]
    run_dir = "runs/glyphs-5way-1shot"
    train = f"cd maml-jax && .venv/bin/maml-jax train glyphs-5way-1shot --run-dir {run_dir}"
    size, version = "--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite"
    assert commands == [
        tpu("create", "maml-jax", size, version),
        ["mkdir", "-p", os.path.dirname(archive)],
        ["tar", "-czf", archive, "-C", str(ROOT), "--exclude=__pycache__", *packed],
        tpu("scp", archive, "maml-jax:maml-jax.tar.gz", "--worker=all"),
        tpu("ssh", "maml-jax", "--worker=all", f"--command={install}"),
        tpu("ssh", "maml-jax", "--worker=all", f"--command={train}"),
        ["mkdir", "-p", "runs"],
        tpu("scp", "--recurse", f"maml-jax:maml-jax/{run_dir}", "runs", "--worker=0"),
        tpu("delete", "maml-jax"),
    ]
    assert install.endswith("python3 -m uv pip install -q --python .venv .[tpu]")
    assert gcloud() == []
    assert result.stderr == ""


def test_several_hosts_train_as_one(gcloud, launch):
    """From 16 chips on; the rest is the same, with project, size and flags as given."""
    words = ["--zone", "eu-1", "--type", "v6e-16", "--spot", "--project", "mine", "--name", "big"]
    flags = ["--", "--aggregation", "tilted:1.0", "--data-dir", "my data"]
    commands = printed(launch(*words, "--dry-run", "sinusoid-10shot-finn2017", *flags))
    ours = [command for command in commands if command[0] == "gcloud"]
    assert all("--zone=eu-1" in command and "--project=mine" in command for command in ours)
    chosen = ["big", "--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot"]
    assert ours[0][5:9] == chosen
    train = ours[3][7].removeprefix("--command=cd maml-jax && .venv/bin/maml-jax ")
    run_dir = "runs/sinusoid-10shot-finn2017"
    asked = ["train", "sinusoid-10shot-finn2017", "--run-dir", run_dir, *flags[1:]]
    assert shlex.split(train) == [*asked, "--distributed"]
    assert gcloud() == []


def test_a_run_goes_on(launch):
    """It is taken to the first host, resumed on all, and fetched."""
    words = ["--zone", "us-west4-a", "--type", "v5litepod-16", "--resume", "runs/mine/"]
    commands = printed(launch("--dry-run", *words))
    train = "cd maml-jax && .venv/bin/maml-jax resume runs/mine --distributed"
    assert commands[5:] == [
        tpu("ssh", "maml-jax", "--worker=0", "--command=mkdir -p maml-jax/runs"),
        tpu("scp", "--recurse", "runs/mine", "maml-jax:maml-jax/runs", "--worker=0"),
        tpu("ssh", "maml-jax", "--worker=all", f"--command={train}"),
        ["mkdir", "-p", "runs"],
        tpu("scp", "--recurse", "maml-jax:maml-jax/runs/mine", "runs", "--worker=0"),
        tpu("delete", "maml-jax"),
    ]


def test_what_is_run_is_what_was_printed(gcloud, launch, tmp_path):
    words = ["--zone", "us-west4-a", "glyphs-5way-1shot", "--", "--data-dir", 'it\'s "here"']
    dry = [command for command in printed(launch("--dry-run", *words)) if command[0] == "gcloud"]
    assert gcloud() == []
    result = launch(*words)
    assert result.returncode == 0, result.stderr
    assert gcloud() == dry
    assert len(dry) == 6
    names = subprocess.run(
        ["tar", "-tzf", str(tmp_path / "cache" / "maml_jax" / "maml-jax.tar.gz")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {"pyproject.toml", "maml_jax/outer_step.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.startswith(".")]


def test_some_steps(gcloud, launch):
    words = ["--zone", "us-west4-a", "--steps", "fetch delete", "glyphs-5way-1shot"]
    assert launch(*words).returncode == 0
    assert [command[4] for command in gcloud()] == ["scp", "delete"]


def test_training_that_ends_early_is_fetched(gcloud, launch, tmp_path):
    """Its exit code is the script's; the machine is given back."""
    (tmp_path / "fails").write_text("maml-jax train")
    result = launch("--zone", "us-west4-a", "glyphs-5way-1shot")
    assert result.returncode == 75
    assert [command[4] for command in gcloud()][-3:] == ["ssh", "scp", "delete"]
    assert "error: training ended early; --resume runs/glyphs-5way-1shot goes on." in result.stderr


@pytest.mark.parametrize("step", ["create", "tar.gz", "uv venv", "--recurse"])
def test_a_failed_step_ends_it_and_deletes_nothing(gcloud, launch, tmp_path, step):
    """What failed may be repeated; a run that was not fetched is only there."""
    (tmp_path / "fails").write_text(step)
    result = launch("--zone", "us-west4-a", "glyphs-5way-1shot")
    assert result.returncode == 1
    assert step in " ".join(gcloud()[-1])
    assert "gcloud compute tpus tpu-vm delete maml-jax --zone=us-west4-a --quiet" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--zones", "x"], "there is no flag --zones"),
        (["glyphs-5way-1shot"], "--zone says where"),
        (["--zone"], "--zone needs a value"),
        (["--zone", "z"], "name a preset"),
        (["--zone", "z", "a", "b"], "one preset at a time, got a and b"),
        (["--zone", "z", "--type", "v5e", "a"], "--type ends in a number"),
        (["--zone", "z", "--type", "v9-8", "a"], "type v9-8 has no usual one"),
        (["--zone", "z", "--run-dir", "mine", "a"], "is in another, such as runs/mine, got mine"),
        (["--zone", "z", "--resume", "/runs/a"], "is below this one, such as runs/mine"),
        (["--zone", "z", "--resume", "runs/a", "b"], "give no preset"),
        (["--zone", "z", "--steps", "creat", "a"], "there is no step creat"),
    ],
)
def test_what_is_refused(gcloud, launch, words, message):
    result = launch(*words)
    assert result.returncode == 2
    assert message in result.stderr
    assert gcloud() == []


def test_without_gcloud(launch, tmp_path):
    """Says where it is to be had; a dry run needs none."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "bash"):
        (tools / name).symlink_to(shutil.which(name))
    words = ["--zone", "z", "glyphs-5way-1shot"]
    result = launch(*words, path=str(tools))
    assert result.returncode == 1
    assert "gcloud is not here: see https://cloud.google.com/sdk/docs/install" in result.stderr
    assert launch("--dry-run", *words, path=str(tools)).returncode == 0


def test_help_names_every_flag(launch):
    result = launch("--help")
    assert result.returncode == 0
    flags = [
        "zone",
        "type",
        "version",
        "name",
        "project",
        "run-dir",
        "spot",
        "resume",
        "steps",
        "dry-run",
        "help",
    ]
    assert all(f"  --{flag} " in result.stdout for flag in flags)


def test_fields_are_those_of_skypilot():
    assert set(TASK) <= {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    asked = {"infra", "accelerators", "accelerator_args", "job_recovery", "autostop"}
    assert set(TASK["resources"]) == asked
    assert TASK["resources"]["accelerators"] == "tpu-v5litepod-8"
    assert TASK["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    recovery = TASK["resources"]["job_recovery"]
    assert set(recovery) == {"strategy", "recover_on_exit_codes"}
    assert TASK["resources"]["autostop"] == {"idle_minutes": 10, "down": True}
    assert set(TASK["file_mounts"]["/runs"]) == {"name", "store", "mode"}
    assert TASK["envs"]["PRESET"] in PRESETS


def test_skypilot_starts_again_after_what_can_be_resumed():
    """Oracle: the exit codes that the command line documents."""
    codes = TASK["resources"]["job_recovery"]["recover_on_exit_codes"]
    text = " ".join(cli.main.__doc__.split())
    assert "75 after SIGTERM" in text
    assert "77 when another process of the run is gone" in text
    assert codes == [75, 77]


@pytest.mark.parametrize("hosts", [1, 4])
@pytest.mark.parametrize("exists", [False, True])
def test_what_skypilot_runs(tmp_path, monkeypatch, hosts, exists):
    """The words that reach `maml-jax`; the command line understands them."""
    monkeypatch.setattr(training_commands, "_join", lambda cluster: None)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program = tmp_path / ".venv" / "bin" / "maml-jax"
    program.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {tmp_path}/words\n')
    program.chmod(0o755)
    run_dir = tmp_path / "runs" / "maml"
    run_dir.mkdir(parents=True)
    if exists:
        (run_dir / "config.json").write_text("{}")
    script = TASK["run"].replace("/runs/", f"{tmp_path}/runs/")
    given = {name: str(value) for name, value in TASK["envs"].items()}
    flags = {"FLAGS": "--outer-steps 10 --activations bfloat16"}
    environment = {**os.environ, **given, **flags, "SKYPILOT_NUM_NODES": str(hosts)}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)
    words = (tmp_path / "words").read_text().splitlines()
    first = ["resume", str(run_dir)] if exists else ["train", "glyphs-5way-1shot"]
    if not exists:
        first += ["--run-dir", str(run_dir), *flags["FLAGS"].split()]
    assert words == first + ["--distributed"] * (hosts > 1)
    assert understood(words, monkeypatch) == run_dir


def understood(words, monkeypatch):
    """The folder that the command line makes of the words, without running them."""
    seen = []
    monkeypatch.setattr(
        training_commands, "_report", lambda console, run_dir, run: seen.append(run_dir)
    )
    monkeypatch.setattr(training_commands, "say", lambda console, text: None)
    getattr(training_commands, words[0])(words[1:])
    return seen[0]
