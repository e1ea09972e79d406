// A CUDA driver (libcuda.so.1) that runs on the CPU, for tests on machines without a GPU.
//
// Device memory is host memory, every stream runs its work at once, and a kernel is a host function
// of the same name in libgpu_sim_kernels.so. What real hardware would let pass or turn into garbage
// is made loud here: memory starts as NaN, each allocation ends at a page that no access survives,
// copies are checked against the allocations, and a function that isn't simulated ends the process.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
};

enum { MEMORY = 1 << 30, PAGE = 4096, ALIGNMENT = 16, MAX_THREADS = 1024 };

struct context {
    int device;
};

struct function {
    const char *name;
    void (*run)(const unsigned *grid, const unsigned *block, void **parameters);
};

struct allocation {
    CUdeviceptr start;
    size_t size;
    void *mapping;
    size_t mapped;
    struct allocation *next;
};

static struct context the_context;
static __thread struct context *current;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct allocation *allocations;
static size_t used;
static __thread const char *running = "no kernel";

// Called by every function that cudarc declares and that isn't simulated.
void gpu_sim_missing(const char *name) {
    fprintf(stderr, "gpu-sim: %s is not simulated\n", name);
    abort();
}

// Whether size bytes from start lie in one allocation; says so on stderr if not.
int gpu_sim_inside(const char *what, CUdeviceptr start, size_t size) {
    int inside = size == 0;
    pthread_mutex_lock(&mutex);
    for (struct allocation *a = allocations; a && !inside; a = a->next)
        inside = start >= a->start && size <= a->size && start - a->start <= a->size - size;
    pthread_mutex_unlock(&mutex);
    if (!inside)
        fprintf(stderr, "gpu-sim: %s: %zu bytes at %#lx are not inside an allocation\n", what, size,
                (unsigned long)start);
    return inside;
}

// A fault while a kernel runs is its own doing; others are the process's and stay what they were.
static void on_fault(int number) {
    static const char before[] = "gpu-sim: access outside of device memory while running ";
    if (write(2, before, sizeof before - 1) < 0 || write(2, running, strlen(running)) < 0 ||
        write(2, "\n", 1) < 0)
        _exit(134);
    signal(number, SIG_DFL);
    raise(number);
}

CUresult cuInit(unsigned flags) {
    signal(SIGBUS, on_fault);
    signal(SIGSEGV, on_fault);
    return SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

// One GPU, or as many as GPU_SIM_DEVICES says. They differ by their number only.
static int devices(void) {
    const char *count = getenv("GPU_SIM_DEVICES");
    return count ? atoi(count) : 1;
}

CUresult cuDeviceGetCount(int *count) {
    *count = devices();
    return SUCCESS;
}

CUresult cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= devices())
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "simulated on the CPU");
    return SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = MEMORY;
    return SUCCESS;
}

// Numbers of CUdevice_attribute in cuda.h.
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: // threads per block
        *value = MAX_THREADS;
        break;
    case 8: // shared memory per block
        *value = 48 << 10;
        break;
    case 10: // warp size
        *value = 32;
        break;
    case 16: // multiprocessors
        *value = 8;
        break;
    case 75: // compute capability, major
        *value = 8;
        break;
    case 115: // memory pools
        *value = 1;
        break;
    default:
        *value = 0;
    }
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(struct context **context, int device) {
    *context = &the_context;
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    return SUCCESS;
}

CUresult cuCtxSetCurrent(struct context *context) {
    current = context;
    return SUCCESS;
}

CUresult cuCtxGetCurrent(struct context **context) {
    *context = current;
    return SUCCESS;
}

CUresult cuCtxGetDevice(int *device) {
    *device = 0;
    return current ? SUCCESS : INVALID_CONTEXT;
}

CUresult cuCtxSynchronize(void) {
    return SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = "GPU_SIM_ERROR";
    return SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    switch (error) {
    case INVALID_VALUE:
        *text = "invalid value (simulated)";
        break;
    case OUT_OF_MEMORY:
        *text = "out of memory (simulated)";
        break;
    case INVALID_DEVICE:
        *text = "no such device (simulated)";
        break;
    case INVALID_CONTEXT:
        *text = "no current context (simulated)";
        break;
    case NOT_FOUND:
        *text = "no such kernel (simulated)";
        break;
    default:
        *text = "error (simulated)";
    }
    return SUCCESS;
}

// The last byte lies just before a page without access (up to the alignment).
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    if (!current)
        return INVALID_CONTEXT;
    if (size == 0)
        return INVALID_VALUE;
    pthread_mutex_lock(&mutex);
    CUresult result = OUT_OF_MEMORY;
    if (size <= MEMORY && used <= MEMORY - size) {
        size_t aligned = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        size_t pages = (aligned + PAGE - 1) / PAGE * PAGE;
        struct allocation *a = malloc(sizeof *a);
        char *mapping = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (!a || mapping == MAP_FAILED || mprotect(mapping + pages, PAGE, PROT_NONE)) {
            fprintf(stderr, "gpu-sim: the host has no memory or no mappings left\n");
            abort();
        }
        *a = (struct allocation){(CUdeviceptr)(mapping + pages - aligned), size, mapping,
                                 pages + PAGE, allocations};
        memset((void *)a->start, 0xff, size);
        allocations = a;
        used += size;
        *pointer = a->start;
        result = SUCCESS;
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    CUresult result = INVALID_VALUE;
    pthread_mutex_lock(&mutex);
    for (struct allocation **at = &allocations; *at; at = &(*at)->next) {
        struct allocation *a = *at;
        if (a->start == pointer) {
            *at = a->next;
            used -= a->size;
            munmap(a->mapping, a->mapped);
            free(a);
            result = SUCCESS;
            break;
        }
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t size, void *stream) {
    return cuMemAlloc_v2(pointer, size);
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, void *stream) {
    return cuMemFree_v2(pointer);
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    *total = MEMORY;
    *available = MEMORY - used;
    return SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, void *stream) {
    if (!gpu_sim_inside("copy to the device", to, size))
        return INVALID_VALUE;
    memcpy((void *)to, from, size);
    return SUCCESS;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, void *stream) {
    if (!gpu_sim_inside("copy from the device", from, size))
        return INVALID_VALUE;
    memcpy(to, (void *)from, size);
    return SUCCESS;
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, void *stream) {
    if (!gpu_sim_inside("copy, source", from, size) || !gpu_sim_inside("copy, target", to, size))
        return INVALID_VALUE;
    memmove((void *)to, (void *)from, size);
    return SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, void *stream) {
    if (!gpu_sim_inside("memset", to, size))
        return INVALID_VALUE;
    memset((void *)to, value, size);
    return SUCCESS;
}

// Streams and events: all work is done when a call returns, so only their addresses matter.
CUresult cuStreamCreate(void **stream, unsigned flags) {
    return (*stream = malloc(1)) ? SUCCESS : OUT_OF_MEMORY;
}

CUresult cuStreamDestroy_v2(void *stream) {
    free(stream);
    return SUCCESS;
}

CUresult cuStreamSynchronize(void *stream) {
    return SUCCESS;
}

CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return SUCCESS;
}

CUresult cuStreamIsCapturing(void *stream, int *status) {
    *status = 0;
    return SUCCESS;
}

CUresult cuEventCreate(void **event, unsigned flags) {
    return (*event = malloc(1)) ? SUCCESS : OUT_OF_MEMORY;
}

CUresult cuEventDestroy_v2(void *event) {
    free(event);
    return SUCCESS;
}

CUresult cuEventRecord(void *event, void *stream) {
    return SUCCESS;
}

CUresult cuEventSynchronize(void *event) {
    return SUCCESS;
}

CUresult cuEventQuery(void *event) {
    return SUCCESS;
}

// Modules: the code of all of them is one library on the host.
CUresult cuModuleLoadData(void **module, const void *image) {
    static void *kernels;
    pthread_mutex_lock(&mutex);
    if (!kernels)
        kernels = dlopen("libgpu_sim_kernels.so", RTLD_NOW | RTLD_LOCAL);
    pthread_mutex_unlock(&mutex);
    if (!kernels) {
        fprintf(stderr, "gpu-sim: %s\n", dlerror());
        abort();
    }
    *module = kernels;
    return SUCCESS;
}

CUresult cuModuleUnload(void *module) {
    return SUCCESS;
}

CUresult cuModuleGetFunction(struct function **function, void *module, const char *name) {
    char symbol[160];
    snprintf(symbol, sizeof symbol, "gpu_sim_kernel_%s", name);
    void *run = dlsym(module, symbol);
    if (!run) {
        fprintf(stderr, "gpu-sim: kernel %s is not simulated\n", name);
        return NOT_FOUND;
    }
    struct function *found = malloc(sizeof *found);
    if (!found)
        return OUT_OF_MEMORY;
    *found = (struct function){strdup(name), NULL};
    memcpy(&found->run, &run, sizeof run);
    *function = found;
    return SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, int attribute, struct function *function) {
    *value = MAX_THREADS;
    return SUCCESS;
}

CUresult cuLaunchKernel(struct function *function, unsigned grid_x, unsigned grid_y,
                        unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                        unsigned shared, void *stream, void **parameters, void **extra) {
    unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    size_t threads = (size_t)block_x * block_y * block_z;
    if (threads == 0 || threads > MAX_THREADS || !grid_x || !grid_y || !grid_z || extra) {
        fprintf(stderr, "gpu-sim: kernel %s can't be launched like this\n", function->name);
        return INVALID_VALUE;
    }
    running = function->name;
    function->run(grid, block, parameters);
    running = "no kernel";
    return SUCCESS;
}
