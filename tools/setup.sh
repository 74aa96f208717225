#!/usr/bin/env bash
# What `make setup` runs: from a bare Debian (root, git, make, Python 3) to a checkout that demo, check and test run in.
#
#   1. Debian packages that are missing, through apt-get (needs root)
#   2. .venv, made from Debian's own Python so that it sees Debian's python3-bpfcc
#   3. the Python packages of requirements.lock, by version and hash, and this checkout in place (.venv/bin/plexus)
#   4. the C programs that run outside the kernel: the CNI executable, the load tool of the benches
#   5. the programs that run in the kernel, compiled once for all nodes (build/programs; needs root)
#
# Each step is passed over when its result is there, so a second run takes well under a second. Two runs at once are
# safe: the later one waits. Nothing outside .venv, build/ and Debian's packages is changed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PYTHON=/usr/bin/python3
readonly VENV=.venv
readonly STAMP=$VENV/plexus-setup.sha256
# name: why
readonly PACKAGES=(
    python3-bpfcc   # compiles BPF programs
    python3-venv    # the virtual environment
    linux-libc-dev  # the kernel's user-space headers, which the BPF programs include
    gcc             # the CNI executable and the load tool
    libc6-dev       # static libc: the CNI executable must run on any host
    iproute2        # ip, tc: looking at a lab by hand
    iputils-ping    # ping inside pods
    util-linux      # nsenter, flock
    nftables        # nft: a node's own rules, looked at or made by hand
    tcpdump         # tests that look at the wire
    iperf3          # streams by hand
    curl            # the demo's clients
)

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

missing_packages() {
    local known
    # ${db:Status-Abbrev} starts with "ii" for what is installed and configured
    known=$(dpkg-query -W -f '${db:Status-Abbrev}|${Package}\n' "${PACKAGES[@]}" 2>/dev/null | sed -n 's/^ii *|//p') || true
    printf '%s\n' "${PACKAGES[@]}" | grep -vxF -f <(printf '%s\n' "$known") || true
}

install_packages() {
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
        fail "this is not a Debian system. Plexus is built and tested on Debian 12: run it there, or in a virtual machine or privileged container of it."
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || fail "Debian packages are missing: ${missing[*]}. Run 'make setup' as root, or install them: sudo apt-get install --no-install-recommends ${missing[*]}"
    say "Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local options=(-qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    apt-get "${options[@]}" update ||
        fail "'apt-get update' failed (its reason stands above). Mend the network or /etc/apt/sources.list and run 'make setup' again."
    # debconf's chatter goes to a log that is shown only when something went wrong
    local log
    log=$(mktemp)
    if ! apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        fail "'apt-get install ${missing[*]}' failed (its reason stands above)."
    fi
    rm -f "$log"
}

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$PYTHON is missing or older than 3.11. Debian 12's own Python is the one that fits; a second Python on PATH does not see python3-bpfcc."
}

# One line for everything that decides what .venv holds.
wanted() {
    {
        "$PYTHON" -c 'import sys; print(sys.version)'
        pwd
        sha256sum requirements.lock pyproject.toml
    } | sha256sum
}

install_python() {
    local want
    want=$(wanted)
    if [ "$(cat "$STAMP" 2>/dev/null)" = "$want" ] && [ -x "$VENV/bin/python" ] && [ -x "$VENV/bin/plexus" ]; then
        return 0
    fi
    # An environment of another Python, or one that lost its interpreter, cannot be mended in place.
    if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null || ! same_python; then
        say "virtual environment: $VENV from $PYTHON"
        "$PYTHON" -m venv --clear --system-site-packages "$VENV"
    fi
    rm -f "$STAMP"
    say "Python packages: $(grep -c '^[a-z].*==' requirements.lock) pinned in requirements.lock"
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check --no-input)
    "${pip[@]}" install --quiet --quiet --require-hashes -r requirements.lock ||
        fail "pip could not install requirements.lock (its reason stands above). Without a way to a package index set PIP_INDEX_URL or PIP_FIND_LINKS; 'make lock' pins anew."
    say "this checkout, in place: $VENV/bin/plexus"
    "${pip[@]}" install --quiet --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable . ||
        fail "pip could not install this checkout (its reason stands above)."
    "$VENV/bin/python" -c 'import bcc' ||
        fail "$VENV does not see Debian's python3-bpfcc: was $VENV made by another Python? Remove $VENV and run 'make setup' again."
    printf '%s\n' "$want" >"$STAMP"
}

same_python() {
    [ "$("$VENV/bin/python" -c 'import sys; print(sys.version, sys.base_prefix)')" = "$("$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)')" ]
}

build_programs() {
    [ -x build/plexus-cni ] && [ -x build/load ] && [ -x build/survive ] ||
        say "C programs: build/plexus-cni (CNI), build/load, build/survive (benches)"
    make --silent programs || fail "a C program did not compile (its reason stands above)."
}

# So that no process compiles our Python as it starts, also where PYTHONDONTWRITEBYTECODE is set.
compile_python() {
    "$VENV/bin/python" -m compileall -q bus cli lab services settings || fail "a Python file does not compile (its reason stands above)."
}

build_kernel_programs() {
    if [ "$(id -u)" -ne 0 ]; then
        say "programs for the kernel are compiled by whoever starts a node: run 'make setup' as root to have them built"
        return 0
    fi
    "$VENV/bin/python" -m services.dataplane.load.build || fail "a BPF program did not compile (its reason stands above)."
}

command -v flock >/dev/null || fail "flock is missing (package util-linux)."
exec 9<.
flock 9
install_packages
check_python
install_python
build_programs
compile_python
build_kernel_programs
