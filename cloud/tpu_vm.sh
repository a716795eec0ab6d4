#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'USAGE'
Trains a preset on a Cloud TPU by gcloud, and brings the run home.

  bash cloud/tpu_vm.sh --zone ZONE [flags] PRESET [-- FLAGS OF maml-jax train]
  bash cloud/tpu_vm.sh --zone ZONE [flags] --resume RUN

  --zone ZONE        a zone that has the type; see https://cloud.google.com/tpu/docs/regions-zones
  --type TYPE        accelerator type; more than 8 chips are several hosts (default: v5litepod-8)
  --version VERSION  software of the VM (default: the one for the type)
  --name NAME        of the VM (default: maml-jax)
  --project PROJECT  of Google Cloud (default: that of gcloud)
  --run-dir FOLDER   of the run, there and here (default: runs/PRESET)
  --spot             cheaper, and may be taken away: fetch the run now and then
  --resume RUN       take a run that was fetched back there, and go on with it
  --steps "STEP …"   only some of: create copy install upload train fetch delete
  --dry-run          print the commands, and run none
  --help             print this

The VM costs money from `create` to `delete`. `delete` is left out if the run could not be fetched.
USAGE
}

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

quoted() { # quoted WORD …: as a shell reads them back
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# Everything that changes anything goes through here: what is printed is what is run.
run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

tpu() { # tpu VERB [arguments]: gcloud on TPU VMs, where this one is
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

on_all_hosts() { # on_all_hosts COMMAND: in each host's home, at the same time
  tpu ssh "$name" --worker=all --command="$1"
}

create() {
  tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

# What `pip install` needs of this checkout, with changes that are not committed.
copy() {
  run mkdir -p "${archive%/*}" &&
    run tar -czf "$archive" -C "$checkout" --exclude=__pycache__ \
      pyproject.toml README.md LICENSE maml_jax &&
    tpu scp "$archive" "$name:maml-jax.tar.gz" --worker=all
}

# The VM's own Python is older than JAX supports; uv brings one.
install() {
  local unpack="mkdir -p maml-jax && tar -xzf maml-jax.tar.gz -C maml-jax && cd maml-jax"
  local python="python3 -m pip install -q --user uv && python3 -m uv venv -q --python 3.12 --clear"
  on_all_hosts "$unpack && $python .venv && python3 -m uv pip install -q --python .venv .[tpu]"
}

# Process 0, on the first host, alone has the folder of the run.
upload() {
  tpu ssh "$name" --worker=0 --command="mkdir -p $(quoted "maml-jax/${run_dir%/*}")" &&
    tpu scp --recurse "$run_dir" "$name:maml-jax/${run_dir%/*}" --worker=0
}

train() {
  local words=(train "${preset:-}" --run-dir "$run_dir" "${flags[@]}")
  [ -z "$resume" ] || words=(resume "$run_dir")
  [ "$chips" -le 8 ] || words+=(--distributed)
  on_all_hosts "cd maml-jax && .venv/bin/maml-jax $(quoted "${words[@]}")"
}

fetch() {
  run mkdir -p "${run_dir%/*}" &&
    tpu scp --recurse "$name:maml-jax/$run_dir" "${run_dir%/*}" --worker=0
}

delete() {
  tpu delete "$name"
}

read_arguments() {
  zone='' type=v5litepod-8 version='' name=maml-jax project='' run_dir='' spot='' resume=''
  steps='' dry_run='' preset='' flags=()
  while [ $# -gt 0 ]; do
    case $1 in
      --zone | --type | --version | --name | --project | --run-dir | --resume | --steps)
        [ $# -ge 2 ] || fail "$1 needs a value."
        local variable=${1#--}
        printf -v "${variable//-/_}" '%s' "$2"
        shift 2
        ;;
      --spot | --dry-run)
        local switch=${1#--}
        printf -v "${switch//-/_}" yes
        shift
        ;;
      --help) usage && exit ;;
      --)
        shift
        flags=("$@")
        break
        ;;
      -*) fail "there is no flag $1; --help lists them, and flags of maml-jax follow after --." ;;
      *)
        [ -z "$preset" ] || fail "one preset at a time, got $preset and $1."
        preset=$1
        shift
        ;;
    esac
  done
}

check_arguments() {
  [ -n "$zone" ] || fail "--zone says where, such as --zone us-west4-a; got none."
  [ -n "$preset$resume" ] || fail "name a preset; maml-jax presets lists them."
  chips=${type##*-}
  [[ $chips =~ ^[0-9]+$ ]] || fail "--type ends in a number, such as v5litepod-8, got $type."
  if [ -z "$version" ]; then
    case $type in
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      v4-*) version=tpu-ubuntu2204-base ;;
      *) fail "--version says which software, got none, and type $type has no usual one here." ;;
    esac
  fi
  run_dir=${resume:-${run_dir:-runs/$preset}}
  run_dir=${run_dir%/}
  case $run_dir in
    /* | *..*) fail "the folder of a run is below this one, such as runs/mine, got $run_dir." ;;
    */*) ;;
    *) fail "the folder of a run is in another, such as runs/mine, got $run_dir." ;;
  esac
  [ -z "$resume" ] || [ -z "$preset${flags[*]}" ] ||
    fail "--resume takes the settings of the run, so give no preset and no flags of it."
  checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=${XDG_CACHE_HOME:-$HOME/.cache}/maml_jax/$name.tar.gz
  steps=${steps:-create copy install ${resume:+upload} train fetch delete}
  local step
  for step in $steps; do
    case $step in
      create | copy | install | upload | train | fetch | delete) ;;
      *) fail "there is no step $step; --help lists them." ;;
    esac
  done
  [ -n "$dry_run" ] || command -v gcloud >/dev/null ||
    fail "gcloud is not here: see https://cloud.google.com/sdk/docs/install, or add --dry-run." 1
}

still_there() {
  local command
  command=$(dry_run=yes delete)
  echo "The VM may still be there, and cost money; when you do not need it any more: $command"
}

# A run that stopped early is fetched too; its exit code is that of the script.
main() {
  read_arguments "$@"
  check_arguments
  local step trained=0
  for step in $steps; do
    [ -n "$dry_run" ] || echo "$step" >&2
    if [ "$step" = train ]; then
      train || trained=$?
    else
      "$step" || fail "$step failed. $(still_there)" 1
    fi
  done
  [ "$trained" = 0 ] || fail "training ended early; --resume $run_dir goes on." "$trained"
}

main "$@"
