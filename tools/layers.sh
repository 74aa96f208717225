#!/usr/bin/env bash
# Run layers of tests, one after the other, each by as many processes as there are CPUs, and say what each took.
# Usage: tools/layers.sh LAYER... (folders of tests/). Exit status: 0 only if all passed; the first that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

times=()
trap '[ ${#times[@]} -lt 2 ] || printf "%s\n" "${times[@]}"' EXIT

run() {
    local began=$SECONDS status=0
    .venv/bin/python -m pytest -n auto --maxprocesses 4 --durations 10 "tests/$1" || status=$?
    times+=("$(printf 'tests/%-9s %4d s' "$1" $((SECONDS - began)))")
    return $status
}
for layer; do
    run "$layer"
done
