#!/usr/bin/env bash
# Write requirements.lock anew: every Python package that Plexus runs on or is built with, with version and hashes.
# What is installed and from where is pip's own configuration; the lock names no place.
# Versions already in the lock stay unless --upgrade or --upgrade-package NAME is given.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly RESOLVER="pip-tools==7.6.2"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "lock: resolver $RESOLVER in a scratch environment"
/usr/bin/python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "$RESOLVER"

echo "lock: resolving pyproject.toml"
new="$scratch/requirements.lock"
[ ! -f requirements.lock ] || cp requirements.lock "$new"
"$scratch/venv/bin/pip-compile" --quiet --strip-extras --extra dev --allow-unsafe --generate-hashes \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate \
    --output-file "$new" "$@" pyproject.toml
{
    echo "# Written by \`make lock\` out of pyproject.toml; installed by \`make setup\`. Hashes cover every platform's files."
    grep -v '^#' "$new" | sed '/./,$!d'
} >requirements.lock
echo "lock: $(grep -c '==' requirements.lock) packages in requirements.lock"
