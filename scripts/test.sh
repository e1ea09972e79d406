#!/usr/bin/env bash
# Runs every test. Installs what they need where it can, and otherwise says what is missing.
#
#   scripts/test.sh                      all tests
#   scripts/test.sh -p reclora-storage   arguments go to `cargo nextest run` instead of --workspace
#
# A test that can't run on this machine is skipped; the last lines say which and why. With RECLORA_REQUIRE_ALL=1
# it fails instead, unless it is the processor that lacks something.
#
# The release profile on purpose: the tests train real (tiny) models, and the quickstart uses the
# same build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
    printf 'scripts/test.sh: %s\n' "$1" >&2
    exit 1
}

if ! command -v cargo >/dev/null; then
    stop 'cargo is missing: install Rust from https://rustup.rs (1.90 or later)'
fi

# Rust links through the C compiler; nothing else is needed from the system.
if ! command -v cc >/dev/null; then
    if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends gcc libc6-dev
    else
        stop 'a C compiler is missing (the linker): install gcc, on Debian `apt-get install gcc libc6-dev`'
    fi
fi

# Some tests make network namespaces and cut the cables between them, and some run on a real Slurm of four nodes
# on this machine, each in namespaces of its own: that takes root, iproute2 and Slurm.
cluster=scripts/slurm/cluster.sh
slurm_is_here() {
    local program
    for program in slurmctld slurmd sbatch munged ip; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || return 1
    done
}
if [[ $(id -u) -ne 0 ]] || ! unshare -n true 2>/dev/null; then
    echo 'scripts/test.sh: no right to make network namespaces: tests that cut cables, and those on Slurm, are' \
        'skipped' >&2
    no_namespaces=1
elif ! slurm_is_here; then
    command -v apt-get >/dev/null ||
        stop 'iproute2 or Slurm (slurmctld, slurmd, sbatch, munged) is missing: install them for the tests'
    "$cluster" install
fi

if ! cargo nextest --version >/dev/null 2>&1; then
    echo 'scripts/test.sh: installing cargo-nextest (once, a few minutes)' >&2
    cargo install cargo-nextest --locked
fi

if [[ -z ${no_namespaces:-} ]]; then
    RECLORA_SLURM=$(mktemp -d /tmp/reclora-slurm-XXXX)
    export RECLORA_SLURM
    # Stops the cluster when this script is gone, however it ends.
    setsid bash -c 'while kill -0 "$1" 2>/dev/null; do sleep 0.5; done; "$2" stop "$3"; rm -rf "$3"' - \
        $$ "$PWD/$cluster" "$RECLORA_SLURM" </dev/null >/dev/null 2>&1 &
    "$cluster" start "$RECLORA_SLURM"
fi

# Tests that are skipped add a line each: the reason, a tab, the name.
RECLORA_SKIPPED=$(mktemp /tmp/reclora-skipped-XXXX)
export RECLORA_SKIPPED
say_skipped() {
    printf 'scripts/test.sh: %d tests skipped\n' "$(wc -l <"$RECLORA_SKIPPED")"
    sort "$RECLORA_SKIPPED" | awk -F '\t' '
        $1 != reason { reason = $1; print "  " reason }
        { print "    " $2 }'
    rm -f "$RECLORA_SKIPPED"
}
trap say_skipped EXIT

if [[ -n ${RECLORA_SLURM:-} ]]; then
    # The tests on Slurm mostly wait, and go one after the other beside the others.
    export NEXTEST_TEST_THREADS=${NEXTEST_TEST_THREADS:-$(($(nproc) + 1))}
fi
if [[ $# -gt 0 ]]; then
    cargo nextest run --locked --release "$@"
    exit
fi
cargo nextest run --locked --workspace --release
# nextest runs no documentation examples.
cargo test --locked --workspace --release --doc
