// CUDA C++ kernels as host C++: g++ -x c++ -include cuda_on_host.h kernels.cu
//
// One thread of the host runs the blocks of a grid in turn. In files without barriers the threads of
// a block are a loop; with GPU_SIM_BARRIERS they are fibers, and __syncthreads and warp shuffles wait
// for the others as on a GPU. A barrier that not all threads reach ends the process.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct gpu_sim_index {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static thread_local gpu_sim_index threadIdx, blockIdx;
static thread_local dim3 blockDim, gridDim;
static const int warpSize = 32;

// ---- Threads of a block ---------------------------------------------------------------------------

#ifdef GPU_SIM_BARRIERS
enum gpu_sim_state { RUNNABLE, AT_BLOCK_BARRIER, AT_WARP_BARRIER, FINISHED };

struct gpu_sim_fiber {
    ucontext_t context;
    gpu_sim_state state;
    gpu_sim_index index;
};

static const unsigned GPU_SIM_MAX_THREADS = 1024;
static const size_t GPU_SIM_STACK = 64 << 10;
static thread_local std::vector<gpu_sim_fiber> gpu_sim_fibers;
static thread_local std::vector<char> gpu_sim_stacks;
static thread_local unsigned gpu_sim_threads, gpu_sim_current;
static thread_local ucontext_t gpu_sim_scheduler;
static thread_local char gpu_sim_lanes[GPU_SIM_MAX_THREADS][16];

static inline void gpu_sim_wait(gpu_sim_state state) {
    gpu_sim_fiber &fiber = gpu_sim_fibers[gpu_sim_current];
    fiber.state = state;
    swapcontext(&fiber.context, &gpu_sim_scheduler);
    threadIdx = fiber.index;
}

static inline void __syncthreads() { gpu_sim_wait(AT_BLOCK_BARRIER); }
static inline void __syncwarp(unsigned = 0) { gpu_sim_wait(AT_WARP_BARRIER); }

// The value that another thread of the warp passed.
template <class T> static inline T gpu_sim_exchange(T value, unsigned source) {
    static_assert(sizeof(T) <= sizeof gpu_sim_lanes[0], "a wider slot is needed");
    memcpy(gpu_sim_lanes[gpu_sim_current], &value, sizeof value);
    gpu_sim_wait(AT_WARP_BARRIER);
    if (source < gpu_sim_threads)
        memcpy(&value, gpu_sim_lanes[source], sizeof value);
    gpu_sim_wait(AT_WARP_BARRIER);
    return value;
}

template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    unsigned lane = gpu_sim_current % 32;
    return gpu_sim_exchange(value, gpu_sim_current - lane + (lane ^ mask));
}

template <class F> struct gpu_sim_body {
    static thread_local F *body;
    static void run() {
        (*body)();
        gpu_sim_wait(FINISHED);
    }
};
template <class F> thread_local F *gpu_sim_body<F>::body;

static inline unsigned gpu_sim_count(unsigned from, unsigned to, gpu_sim_state state) {
    unsigned count = 0;
    for (unsigned i = from; i < to; i++)
        count += gpu_sim_fibers[i].state == state;
    return count;
}

static inline void gpu_sim_release(unsigned from, unsigned to, gpu_sim_state state) {
    for (unsigned i = from; i < to; i++)
        if (gpu_sim_fibers[i].state == state)
            gpu_sim_fibers[i].state = RUNNABLE;
}

template <class F> static void gpu_sim_block(F body) {
    unsigned threads = gpu_sim_threads = blockDim.x * blockDim.y * blockDim.z;
    if (gpu_sim_fibers.size() < threads) {
        gpu_sim_fibers.resize(threads);
        gpu_sim_stacks.resize(threads * GPU_SIM_STACK);
    }
    gpu_sim_body<F>::body = &body;
    for (unsigned i = 0; i < threads; i++) {
        gpu_sim_fiber &fiber = gpu_sim_fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = &gpu_sim_stacks[i * GPU_SIM_STACK];
        fiber.context.uc_stack.ss_size = GPU_SIM_STACK;
        fiber.context.uc_link = &gpu_sim_scheduler;
        fiber.state = RUNNABLE;
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        makecontext(&fiber.context, gpu_sim_body<F>::run, 0);
    }
    while (gpu_sim_count(0, threads, FINISHED) < threads) {
        for (unsigned i = 0; i < threads; i++)
            if (gpu_sim_fibers[i].state == RUNNABLE) {
                gpu_sim_current = i;
                threadIdx = gpu_sim_fibers[i].index;
                swapcontext(&gpu_sim_scheduler, &gpu_sim_fibers[i].context);
            }
        for (unsigned warp = 0; warp < threads; warp += 32) {
            unsigned end = std::min(warp + 32, threads);
            unsigned waiting = gpu_sim_count(warp, end, AT_WARP_BARRIER);
            if (waiting && waiting + gpu_sim_count(warp, end, FINISHED) == end - warp)
                gpu_sim_release(warp, end, AT_WARP_BARRIER);
        }
        unsigned finished = gpu_sim_count(0, threads, FINISHED);
        if (gpu_sim_count(0, threads, RUNNABLE) || finished == threads)
            continue;
        if (gpu_sim_count(0, threads, AT_BLOCK_BARRIER) + finished < threads) {
            fprintf(stderr, "gpu-sim: a kernel waits at a barrier that not all threads reach\n");
            abort();
        }
        gpu_sim_release(0, threads, AT_BLOCK_BARRIER);
    }
}
#else
template <class F> static void gpu_sim_block(F body) {
    for (unsigned z = 0; z < blockDim.z; z++)
        for (unsigned y = 0; y < blockDim.y; y++)
            for (unsigned x = 0; x < blockDim.x; x++) {
                threadIdx = {x, y, z};
                body();
            }
}
#endif

template <class... A, size_t... I>
static void gpu_sim_call(void (*kernel)(A...), void **parameters, std::index_sequence<I...>) {
    std::tuple<A...> values{*(std::remove_reference_t<A> *)parameters[I]...};
    gpu_sim_block([&] { kernel(std::get<I>(values)...); });
}

template <class... A>
static void gpu_sim_grid(void (*kernel)(A...), const unsigned *grid, const unsigned *block,
                         void **parameters) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                gpu_sim_call(kernel, parameters, std::index_sequence_for<A...>{});
            }
}

// What the simulated driver looks up and calls for a kernel.
#define GPU_SIM_KERNEL(kernel)                                                                     \
    extern "C" __attribute__((visibility("default"))) void gpu_sim_kernel_##kernel(                \
        const unsigned *grid, const unsigned *block, void **parameters) {                          \
        gpu_sim_grid(kernel, grid, block, parameters);                                             \
    }

// ---- Functions and types that CUDA predefines -----------------------------------------------------

using std::isinf;
using std::isnan;
using std::signbit;

template <class A, class B> static inline auto max(A a, B b) {
    using C = std::common_type_t<A, B>;
    return (C)a > (C)b ? (C)a : (C)b;
}
template <class A, class B> static inline auto min(A a, B b) {
    using C = std::common_type_t<A, B>;
    return (C)a < (C)b ? (C)a : (C)b;
}
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
static inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline double rsqrt(double x) { return 1. / sqrt(x); }
#define __expf expf

template <class O, class I> static inline O gpu_sim_bits(I in) {
    static_assert(sizeof(O) == sizeof(I), "the same bits");
    O out;
    memcpy(&out, &in, sizeof out);
    return out;
}
#define __float_as_uint gpu_sim_bits<unsigned, float>
#define __float_as_int gpu_sim_bits<int, float>
#define __uint_as_float gpu_sim_bits<float, unsigned>
#define __int_as_float gpu_sim_bits<float, int>
#define __double_as_longlong gpu_sim_bits<long long, double>
#define __longlong_as_double gpu_sim_bits<double, long long>
#define __half_as_ushort gpu_sim_bits<unsigned short, __half>
#define __ushort_as_half gpu_sim_bits<__half, unsigned short>

// One host thread runs a whole launch, so nothing comes between reading and writing.
template <class T> struct gpu_sim_same {
    using type = T;
};
template <class T> static inline T atomicAdd(T *p, typename gpu_sim_same<T>::type value) {
    T old = *p;
    *p = (T)(old + value);
    return old;
}
template <class T, class V> static inline T atomicMin(T *p, V value) {
    T old = *p;
    if ((T)value < old)
        *p = (T)value;
    return old;
}
template <class T, class V> static inline T atomicMax(T *p, V value) {
    T old = *p;
    if ((T)value > old)
        *p = (T)value;
    return old;
}
template <class T, class A, class V> static inline T atomicCAS(T *p, A expected, V value) {
    T old = *p;
    if (old == (T)expected)
        *p = (T)value;
    return old;
}

// 16-bit floats: computed in float, rounded to even after every operation.
static inline uint16_t gpu_sim_to_half(float x) { return gpu_sim_bits<uint16_t>((_Float16)x); }
static inline float gpu_sim_from_half(uint16_t bits) { return gpu_sim_bits<_Float16>(bits); }
static inline uint16_t gpu_sim_to_bfloat(float x) {
    uint32_t bits = gpu_sim_bits<uint32_t>(x);
    return isnan(x) ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static inline float gpu_sim_from_bfloat(uint16_t bits) {
    return gpu_sim_bits<float>((uint32_t)bits << 16);
}

#define GPU_SIM_FLOAT16(N, TO, FROM)                                                               \
    struct N {                                                                                     \
        uint16_t bits;                                                                             \
        N() = default;                                                                             \
        template <class T, std::enable_if_t<std::is_arithmetic<T>::value, int> = 0>                \
        N(T x) : bits(TO((float)x)) {}                                                             \
        operator float() const { return FROM(bits); }                                              \
        template <class T> N &operator+=(T x) { return *this = N((float)*this + (float)x); }       \
        template <class T> N &operator-=(T x) { return *this = N((float)*this - (float)x); }       \
        template <class T> N &operator*=(T x) { return *this = N((float)*this * (float)x); }       \
        template <class T> N &operator/=(T x) { return *this = N((float)*this / (float)x); }       \
        N operator-() const { return N(-(float)*this); }                                           \
    };                                                                                             \
    static inline N operator+(N a, N b) { return N((float)a + (float)b); }                         \
    static inline N operator-(N a, N b) { return N((float)a - (float)b); }                         \
    static inline N operator*(N a, N b) { return N((float)a * (float)b); }                         \
    static inline N operator/(N a, N b) { return N((float)a / (float)b); }                         \
    static inline bool operator>(N a, N b) { return (float)a > (float)b; }                         \
    static inline bool operator<(N a, N b) { return (float)a < (float)b; }                         \
    static inline bool operator>=(N a, N b) { return (float)a >= (float)b; }                       \
    static inline bool operator<=(N a, N b) { return (float)a <= (float)b; }                       \
    static inline bool operator==(N a, N b) { return (float)a == (float)b; }                       \
    static inline bool operator!=(N a, N b) { return (float)a != (float)b; }                       \
    static inline bool __hisnan(N a) { return isnan((float)a); }                                   \
    static inline N hsqrt(N a) { return N(sqrtf(a)); }                                             \
    static inline N hrsqrt(N a) { return N(1.f / sqrtf(a)); }                                      \
    static inline N hcos(N a) { return N(cosf(a)); }                                               \
    static inline N hsin(N a) { return N(sinf(a)); }                                               \
    static inline N hlog(N a) { return N(logf(a)); }                                               \
    static inline N hexp(N a) { return N(expf(a)); }                                               \
    static inline N __habs(N a) { return N(fabsf(a)); }                                            \
    static inline N __hmax_nan(N a, N b) { return __hisnan(a) ? a : __hisnan(b) || b > a ? b : a; } \
    static inline N __hmin_nan(N a, N b) { return __hisnan(a) ? a : __hisnan(b) || b < a ? b : a; }
GPU_SIM_FLOAT16(__half, gpu_sim_to_half, gpu_sim_from_half)
GPU_SIM_FLOAT16(__nv_bfloat16, gpu_sim_to_bfloat, gpu_sim_from_bfloat)
typedef __half half;
typedef __nv_bfloat16 nv_bfloat16;

template <class T> struct gpu_sim_is_16 : std::false_type {};
template <> struct gpu_sim_is_16<__half> : std::true_type {};
template <> struct gpu_sim_is_16<__nv_bfloat16> : std::true_type {};
#define GPU_SIM_MIXED(OP)                                                                          \
    template <class A, class B,                                                                    \
              std::enable_if_t<gpu_sim_is_16<A>::value && std::is_arithmetic<B>::value, int> = 0>  \
    static inline auto operator OP(A a, B b) {                                                     \
        return (float)a OP(float) b;                                                               \
    }                                                                                              \
    template <class A, class B,                                                                    \
              std::enable_if_t<gpu_sim_is_16<B>::value && std::is_arithmetic<A>::value, int> = 0>  \
    static inline auto operator OP(A a, B b) {                                                     \
        return (float)a OP(float) b;                                                               \
    }
GPU_SIM_MIXED(+)
GPU_SIM_MIXED(-)
GPU_SIM_MIXED(*)
GPU_SIM_MIXED(/)
GPU_SIM_MIXED(>)
GPU_SIM_MIXED(<)
GPU_SIM_MIXED(>=)
GPU_SIM_MIXED(<=)
GPU_SIM_MIXED(==)
GPU_SIM_MIXED(!=)

static inline float __half2float(__half x) { return x; }
static inline __half __float2half(float x) { return __half(x); }
static inline float __bfloat162float(__nv_bfloat16 x) { return x; }
static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }

#define __float2half_rn __float2half
#define __float2bfloat16_rn __float2bfloat16
struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
#define GPU_SIM_PAIRWISE(F, OP)                                                                    \
    static inline __half2 F(__half2 a, __half2 b) { return {a.x OP b.x, a.y OP b.y}; }             \
    static inline __nv_bfloat162 F(__nv_bfloat162 a, __nv_bfloat162 b) {                           \
        return {a.x OP b.x, a.y OP b.y};                                                           \
    }
GPU_SIM_PAIRWISE(__hadd2, +)
GPU_SIM_PAIRWISE(__hsub2, -)
GPU_SIM_PAIRWISE(__hmul2, *)
GPU_SIM_PAIRWISE(__h2div, /)

// 8-bit floats: kernels name them, nothing here computes with them.
static inline float gpu_sim_no_fp8() {
    fprintf(stderr, "gpu-sim: 8-bit floats are not simulated\n");
    abort();
}
struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    template <class T> explicit __nv_fp8_e4m3(T) { gpu_sim_no_fp8(); }
    explicit operator float() const { return gpu_sim_no_fp8(); }
};
enum { __NV_E4M3 };
static inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { return __half(gpu_sim_no_fp8()); }
