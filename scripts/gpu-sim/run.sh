#!/usr/bin/env bash
# Runs a command as if this machine had CUDA, NCCL and one GPU (or GPU_SIM_DEVICES of them), simulated
# on the CPU:
#
#   scripts/gpu-sim/run.sh cargo nextest run -p reclora-trainer --features cuda --test cuda
#
# What runs is the real program: candle, its kernels compiled as host C++, cudarc. What it can't show:
# that the kernels' device code compiles, races between streams or threads, any speed.
# All is made under target/gpu-sim once and kept until this directory or the crates change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sources=scripts/gpu-sim
home=$PWD/target/gpu-sim
# Kernel files of candle that the engine needs; conv, sort and those of quantized weights are left out.
kernel_files=(affine binary cast fill indexing reduce ternary unary)

fail() {
    echo "gpu-sim: $1" >&2
    exit 1
}

# Directory of a crate among those the feature brings.
crate_directory() {
    local manifest
    manifest=$(jq -r --arg name "$1" '.packages[] | select(.name == $name) | .manifest_path' <<<"$metadata")
    [[ -f $manifest ]] || fail "cargo metadata knows no crate $1"
    dirname "$manifest"
}

# library SONAME: C files given on stdin or by name become lib64/SONAME, found by -lNAME.
library() {
    local soname=$1
    shift
    gcc -O2 -shared -fPIC -Wall -Wno-unused-parameter -Wl,-z,defs -Wl,-soname,"$soname" \
        -o "$new/lib64/$soname" "$@" -L"$new/lib64" -ldl -lpthread
    ln -sf "$soname" "$new/lib64/${soname%%.so.*}.so"
}

# stubs NAME PREFIX [C FILE]: a function for each one that cudarc declares and the C file lacks.
stubs() {
    local defined=''
    if (($# > 2)); then
        gcc -O2 -fPIC -w -c -o "$new/defined.o" "$3"
        defined=$(nm --defined-only "$new/defined.o" | awk '$2 == "T" { print $3 }')
    fi
    echo 'void gpu_sim_missing(const char *name);'
    grep -ohE "pub (unsafe )?fn $2[A-Z][A-Za-z0-9_]*" "$cudarc/src/$1/sys/mod.rs" |
        awk '{ print $NF }' | sort -u | grep -vxF "$defined" |
        sed 's/.*/void &(void) { gpu_sim_missing("&"); }/'
}

libraries() {
    stubs driver cu "$sources/driver.c" >"$new/driver_stubs.c"
    library libcuda.so.1 "$sources/driver.c" "$new/driver_stubs.c"
    stubs cublas cublas "$sources/cublas.c" >"$new/cublas_stubs.c"
    library libcublas.so.13 "$sources/cublas.c" "$new/cublas_stubs.c" -l:libcuda.so.1
    stubs nccl nccl "$sources/nccl.c" >"$new/nccl_stubs.c"
    library libnccl.so.2 "$sources/nccl.c" "$new/nccl_stubs.c" -l:libcuda.so.1
    stubs curand curand "$sources/curand.c" >"$new/curand_stubs.c"
    library libcurand.so.10 "$sources/curand.c" "$new/curand_stubs.c" -l:libcuda.so.1
    local entry name directory prefix soname
    for entry in cublaslt:cublasLt:libcublasLt.so.13 nvrtc:nvrtc:libnvrtc.so.13 \
        runtime:cuda:libcudart.so.13; do
        IFS=: read -r directory prefix soname <<<"$entry"
        name=$new/${directory}_stubs.c
        stubs "$directory" "$prefix" >"$name"
        library "$soname" "$name" -l:libcuda.so.1
    done
}

# One file of kernels, as an object that shows one function per kernel and nothing else.
kernel_object() {
    local file=$kernels/$1.cu object=$new/$1 flags names
    flags=(-std=c++17 -O1 -w -fPIC -mf16c -fpermissive -fno-strict-aliasing -fvisibility=hidden
        -x c++ -include cuda_on_host.h -I "$sources/include" -I "$kernels")
    ! grep -qE '__syncthreads|__shfl' "$file" || flags+=(-DGPU_SIM_BARRIERS)
    names=$(g++ "${flags[@]}" -E "$file" | tr '\n' ' ' |
        grep -oE 'extern "C" +void +[a-z0-9_]+ *\(' | sed -E 's/.* ([a-z0-9_]+) *\($/\1/' | sort -u)
    [[ -n $names ]] || fail "$file: no kernels found"
    {
        echo "#include \"$file\""
        awk '{ print "GPU_SIM_KERNEL(" $1 ")" }' <<<"$names"
    } >"$object.cc"
    g++ "${flags[@]}" -c "$object.cc" -o "$object.o"
    objcopy --localize-hidden "$object.o"
    echo "gpu-sim: $1: $(wc -l <<<"$names") kernels"
}

build() {
    local name processes=() objects=()
    new=$home.new
    rm -rf "$new" "$home"
    mkdir -p "$new/bin" "$new/lib64"
    cp "$sources/nvcc" "$new/bin/nvcc"
    libraries
    for name in "${kernel_files[@]}"; do
        kernel_object "$name" &
        processes+=($!)
        objects+=("$new/$name.o")
    done
    # Each is waited for by name: `wait` alone would forget that one failed.
    for name in "${processes[@]}"; do
        wait "$name" || fail 'a kernel file does not compile for the host'
    done
    g++ -shared -Wl,-z,defs -o "$new/lib64/libgpu_sim_kernels.so" "${objects[@]}"
    echo "$stamp" >"$new/stamp"
    mv "$new" "$home"
}

(($#)) || fail 'give the command to run'
for tool in g++ jq; do
    command -v "$tool" >/dev/null && continue
    ((EUID == 0)) || fail "needs $tool: apt-get install g++ jq"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ jq >/dev/null
done
metadata=$(cargo metadata --locked --format-version 1 --features reclora-trainer/cuda)
cudarc=$(crate_directory cudarc)
kernels=$(crate_directory candle-kernels)/src
stamp=$(find "$sources" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)" $cudarc $kernels"
if [[ ! -f $home/stamp || $(<"$home/stamp") != "$stamp" ]]; then
    build >&2
fi

export CUDA_HOME=$home CUDA_COMPUTE_CAP=80
export PATH=$home/bin:$PATH LD_LIBRARY_PATH=$home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
