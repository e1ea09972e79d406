// A libnvidia-ml.so.1 for tests. Its GPUs are the lines of the file $GPU_SIM_NVML, read at every call:
//   utilization% memory% used_MiB total_MiB temperature_C power_mW sm_MHz throttle_reasons error [xid [tensor%]]
// An error is an nvmlReturn_t that every question about the GPU is answered with (15: the GPU is lost). An Xid that is
// not 0 is an event, once. A GPU with tensor% has performance monitors. What is not here, the wrapper reports as a
// symbol that could not be loaded.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_GPUS = 64 };
enum { INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };

typedef unsigned long long bytes_t;
struct handle { int index; };
struct gpu { unsigned utilization, memory, used, total, temperature, power, clock, reasons, error, xid; int tensor; };
struct memory_v2 { unsigned version; bytes_t total, reserved, free, used; };

static struct handle handles[MAX_GPUS];

static int load(struct gpu *gpus) {
    const char *path = getenv("GPU_SIM_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    int count = 0;
    if (!file) return 0;
    while (count < MAX_GPUS && fgets(line, sizeof line, file)) {
        struct gpu gpu = {0};
        gpu.tensor = -1;
        int fields = sscanf(line, "%u %u %u %u %u %u %u %u %u %u %d", &gpu.utilization, &gpu.memory, &gpu.used, &gpu.total,
                            &gpu.temperature, &gpu.power, &gpu.clock, &gpu.reasons, &gpu.error, &gpu.xid, &gpu.tensor);
        if (fields < 9) continue;
        handles[count].index = count;
        gpus[count++] = gpu;
    }
    fclose(file);
    return count;
}

static int get(const struct handle *device, struct gpu *gpu) {
    struct gpu gpus[MAX_GPUS];
    if (device->index >= load(gpus)) return GPU_IS_LOST;
    *gpu = gpus[device->index];
    return (int)gpu->error;
}

#define GET(device)                                                                                                    \
    struct gpu gpu;                                                                                                    \
    int error = get(device, &gpu);                                                                                     \
    if (error) return error

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { return error == GPU_IS_LOST ? "GPU is lost" : "simulated error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct gpu gpus[MAX_GPUS];
    *count = (unsigned)load(gpus);
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **device) {
    struct gpu gpus[MAX_GPUS];
    if ((int)index >= load(gpus)) return INVALID_ARGUMENT;
    *device = &handles[index];
    return 0;
}

int nvmlDeviceGetName(struct handle *device, char *name, unsigned size) {
    snprintf(name, size, "Simulated GPU");
    return 0;
}

int nvmlDeviceGetUUID(struct handle *device, char *uuid, unsigned size) {
    snprintf(uuid, size, "GPU-00000000-0000-0000-0000-%012d", device->index);
    return 0;
}

int nvmlDeviceGetUtilizationRates(struct handle *device, unsigned *rates) {
    GET(device);
    rates[0] = gpu.utilization;
    rates[1] = gpu.memory;
    return 0;
}

int nvmlDeviceGetMemoryInfo_v2(struct handle *device, struct memory_v2 *memory) {
    GET(device);
    if (memory->version != (sizeof *memory | 2u << 24)) return VERSION_MISMATCH;
    memory->total = (bytes_t)gpu.total << 20;
    memory->used = (bytes_t)gpu.used << 20;
    memory->free = memory->total - memory->used;
    memory->reserved = 0;
    return 0;
}

int nvmlDeviceGetTemperature(struct handle *device, int sensor, unsigned *temperature) {
    GET(device);
    *temperature = gpu.temperature;
    return 0;
}

int nvmlDeviceGetPowerUsage(struct handle *device, unsigned *power) {
    GET(device);
    *power = gpu.power;
    return 0;
}

int nvmlDeviceGetEnforcedPowerLimit(struct handle *device, unsigned *power) {
    GET(device);
    *power = 700000;
    return 0;
}

int nvmlDeviceGetClockInfo(struct handle *device, int clock, unsigned *frequency) {
    GET(device);
    *frequency = gpu.clock;
    return 0;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct handle *device, bytes_t *reasons) {
    GET(device);
    *reasons = gpu.reasons;
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **device) {
    const char *number = strrchr(uuid, '-');
    return number ? nvmlDeviceGetHandleByIndex_v2((unsigned)atoi(number + 1), device) : NOT_FOUND;
}

// Events: of Xid errors, one set for each GPU.
struct event_set { struct handle *device; unsigned told; };
struct event { struct handle *device; bytes_t type, data; unsigned gpu_instance, compute_instance; };
enum { CRITICAL_XID_ERROR = 8 };

int nvmlEventSetCreate(struct event_set **set) {
    *set = calloc(1, sizeof **set);
    return 0;
}

int nvmlEventSetFree(struct event_set *set) {
    free(set);
    return 0;
}

int nvmlDeviceRegisterEvents(struct handle *device, bytes_t types, struct event_set *set) {
    if (types != CRITICAL_XID_ERROR) return INVALID_ARGUMENT;
    set->device = device;
    return 0;
}

int nvmlEventSetWait_v2(struct event_set *set, struct event *event, unsigned milliseconds) {
    for (unsigned waited = 0; waited <= milliseconds; waited += 50) {
        struct gpu gpus[MAX_GPUS];
        int index = set->device->index;
        // What a GPU said before it was lost is told all the same.
        if (index < load(gpus) && gpus[index].xid && gpus[index].xid != set->told) {
            set->told = gpus[index].xid;
            *event = (struct event){set->device, CRITICAL_XID_ERROR, set->told, 0, 0};
            return 0;
        }
        usleep(50000);
    }
    return TIMEOUT;
}

// Performance monitors, which tell of the tensor cores only.
struct gpm_support { unsigned version, is_supported; };
struct gpm_metric { unsigned id, error; double value; const char *names[3]; };
struct gpm_request { unsigned version, count; const int *before, *after; struct gpm_metric metrics[]; };
enum { ANY_TENSOR_UTIL = 5 };

int nvmlGpmQueryDeviceSupport(struct handle *device, struct gpm_support *support) {
    GET(device);
    support->is_supported = gpu.tensor >= 0;
    return 0;
}

int nvmlGpmSampleAlloc(int **sample) {
    *sample = calloc(1, sizeof **sample);
    return 0;
}

int nvmlGpmSampleFree(int *sample) {
    free(sample);
    return 0;
}

int nvmlGpmSampleGet(struct handle *device, int *sample) {
    GET(device);
    *sample = gpu.tensor;
    return 0;
}

int nvmlGpmMetricsGet(struct gpm_request *request) {
    if (request->version != 1) return VERSION_MISMATCH;
    for (unsigned i = 0; i < request->count; i++) {
        struct gpm_metric *metric = &request->metrics[i];
        metric->error = metric->id == ANY_TENSOR_UTIL ? 0 : NOT_SUPPORTED;
        metric->value = *request->after;
    }
    return 0;
}
