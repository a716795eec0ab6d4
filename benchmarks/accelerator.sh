#!/usr/bin/env bash
# All figures of one accelerator in one run: JSON files and a page in the folder given, by
# default benchmarks/results/accelerator. SMALL=1 tries the same programs at a small size.
#
#     bash benchmarks/accelerator.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benchmarks/results/accelerator}
mkdir -p "$folder"
export PYTHONPATH=$PWD
python=${PYTHON:-python3}

if [ -n "${SMALL:-}" ]; then
  sizes="4 8" several=8 steps="1 8" repeats=2 workloads="W1" layers=("W1 layer 1")
else
  sizes="4 32 128 512 1024" several=128 steps="1 5 20 100 200" repeats=7 workloads="W1 W2"
  layers=("W1 layer 1" "W1 layer 2" "W2 layer 1" "W2 layer 2")
fi

run() { # run NAME PROGRAM [flags]: a program that fails is reported and does not stop the rest
  local name=$1 program=$2
  shift 2
  local began=$SECONDS
  "$python" "benchmarks/$program" "$@" --output "$folder/$name.json" || echo "$name failed" >&2
  echo "$name: $((SECONDS - began)) s"
}

# shellcheck disable=SC2086
{
  run throughput throughput.py --workloads $workloads --num-tasks $sizes \
    --dtypes float32 bfloat16 --repeats $repeats
  JAX_DEFAULT_MATMUL_PRECISION=highest run throughput-float32 throughput.py \
    --workloads $workloads --num-tasks $sizes --repeats $repeats
  run throughput-statistics throughput.py --workloads $workloads --num-tasks $several \
    --statistics inputs outputs --repeats $repeats
  run peers peers.py --workloads $workloads W3 --num-tasks $sizes --repeats $repeats \
    --peers naive_vmap ${TORCH_PEERS:-}
  run memory memory.py --workloads W2 --inner-steps $steps --modes reverse mixed
  run kernels kernels.py --axes vmap --repeats $repeats --layers "${layers[@]}"
}
"$python" benchmarks/report.py --results "$folder"
