#!/usr/bin/env bash
# Run layers of tests, one after the other, each by as many processes as there are CPUs, and say what each took.
# Usage: tools/layers.sh LAYER... (folders of tests/). Exit status: 0 only if all passed; the first that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

times=()
trap '[ ${#times[@]} -lt 2 ] || printf "%s\n" "${times[@]}"' EXIT

# Tests marked `alone` take figures, or need the machine for themselves for another reason.
run() {
    local began=$SECONDS status=0
    .venv/bin/python -m pytest -n auto --maxprocesses 4 --durations 10 -m "not alone" "tests/$1" || status=$?
    if [ $status -eq 0 ] && grep -rqF mark.alone --include '*.py' "tests/$1"; then
        .venv/bin/python -m pytest -m alone "tests/$1" || status=$?
    fi
    times+=("$(printf 'tests/%-9s %4d s' "$1" $((SECONDS - began)))")
    return $status
}
for layer; do
    run "$layer"
done
