#!/usr/bin/env bash
# Runs every test. Installs what they need where it can, and otherwise says what is missing.
#
#   scripts/test.sh                      all tests
#   scripts/test.sh -p reclora-storage   arguments go to `cargo nextest run` instead of --workspace
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

# Some tests make network namespaces and cut the cables between them: that takes root and iproute2.
if [[ $(id -u) -ne 0 ]] || ! unshare -n true 2>/dev/null; then
    echo 'scripts/test.sh: no right to make network namespaces: tests that cut cables are left out' >&2
    export RECLORA_NO_NAMESPACES=1
elif ! command -v ip >/dev/null; then
    if command -v apt-get >/dev/null; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends iproute2
    else
        stop 'ip is missing (tests make networks with it): install iproute2'
    fi
fi

if ! cargo nextest --version >/dev/null 2>&1; then
    echo 'scripts/test.sh: installing cargo-nextest (once, a few minutes)' >&2
    cargo install cargo-nextest --locked
fi

if [[ $# -gt 0 ]]; then
    exec cargo nextest run --locked --release "$@"
fi
cargo nextest run --locked --workspace --release
# nextest runs no documentation examples.
cargo test --locked --workspace --release --doc
