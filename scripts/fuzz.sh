#!/usr/bin/env bash
# Feeds damaged and made-up files to every parser of bytes: a panic, an overflow, an address error or an
# allocation beyond the limit is a finding, and its input is kept under fuzz/artifacts/TARGET/.
#
#   scripts/fuzz.sh                  60 seconds each
#   scripts/fuzz.sh 600              10 minutes each
#   scripts/fuzz.sh 600 shard gguf   these only
#
# Needs nightly Rust and cargo-fuzz. It has no end, so other checks only see that the targets compile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-60}
shift || true
[[ $seconds =~ ^[0-9]+$ ]] || {
    echo "usage: scripts/fuzz.sh [SECONDS [TARGET...]]" >&2
    exit 1
}
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo 'scripts/fuzz.sh: installing cargo-fuzz (once, a few minutes)' >&2
    cargo install cargo-fuzz --locked
fi
cargo +nightly --version >/dev/null || {
    echo 'scripts/fuzz.sh: nightly Rust is missing: rustup toolchain install nightly' >&2
    exit 1
}

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
[[ $# -gt 0 ]] || set -- shard dataset manifest codec raw gguf safetensors adapter crm checkpoint comm \
    parquet
cargo +nightly fuzz build --fuzz-dir fuzz
# The seeds are written by a program of the same build: nothing is compiled twice.
"fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release/seeds"

# No input is longer than 64 KiB. Nothing of that size may make a parser ask for 64 MiB at once; only what
# is packed may unpack to more, up to the largest page of Parquet.
limits=(-max_len=65536 -rss_limit_mb=2048 -timeout=20 -print_final_stats=1)
declare -A malloc_limit=([parquet]=260)
failed=()
for target; do
    printf '\n==> %s, %s s\n' "$target" "$seconds"
    set +e
    cargo +nightly fuzz run --fuzz-dir fuzz "$target" -- "-max_total_time=$seconds" \
        "-malloc_limit_mb=${malloc_limit[$target]:-64}" "${limits[@]}" 2>&1 |
        grep --line-buffered -E '^(stat::|SUMMARY|thread |Test unit|Done )|panicked|ERROR:'
    [[ ${PIPESTATUS[0]} -eq 0 ]] || failed+=("$target")
    set -e
done
rm -rf /dev/shm/reclora-fuzz-*
if [[ ${#failed[@]} -gt 0 ]]; then
    printf '\nfindings in: %s; their inputs are under fuzz/artifacts/\n' "${failed[*]}"
    exit 1
fi
printf '\nno findings\n'
