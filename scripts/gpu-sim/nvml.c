// A libnvidia-ml.so.1 for tests. Its GPUs are the lines of the file $GPU_SIM_NVML, read at every call:
//   utilization% memory% used_MiB total_MiB temperature_C power_mW sm_MHz throttle_reasons error
// An error is an nvmlReturn_t that every question about the GPU is answered with (15: the GPU is lost). What is not
// here, the wrapper reports as a symbol that could not be loaded.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GPUS = 64, INVALID_ARGUMENT = 2, NOT_FOUND = 6, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };

typedef unsigned long long bytes_t;
struct handle { int index; };
struct gpu { unsigned utilization, memory, used, total, temperature, power, clock, reasons, error; };
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
        int fields = sscanf(line, "%u %u %u %u %u %u %u %u %u", &gpu.utilization, &gpu.memory, &gpu.used, &gpu.total,
                            &gpu.temperature, &gpu.power, &gpu.clock, &gpu.reasons, &gpu.error);
        if (fields != 9) continue;
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
