/* The only device, as in its data sheet: an H100, or an A100 if REHEARSAL_DEVICE=a100. */
#include "stand_in.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const device_model h100 = {
    "NVIDIA H100 (rehearsed)", 9, 0, 132, 50 << 20, 1980000, 2619000, 232448, 233472, 3352, 50,
};
static const device_model a100 = {
    "NVIDIA A100 (rehearsed)", 8, 0, 108, 40 << 20, 1410000, 1593000, 166912, 167936, 2039, 25,
};

const device_model *rehearsal_device(void)
{
    static const device_model *chosen;
    if (!chosen) {
        const char *wanted = getenv("REHEARSAL_DEVICE");
        if (wanted && strcmp(wanted, "h100") && strcmp(wanted, "a100")) {
            fprintf(stderr, "REHEARSAL_DEVICE=%s: expected h100 or a100\n", wanted);
            abort();
        }
        chosen = wanted && !strcmp(wanted, "a100") ? &a100 : &h100;
    }
    return chosen;
}

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess
                       : rehearsal_refuse(cudaErrorInvalidDevice, "cudaSetDevice(%d)", device);
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device)
{
    (void)device;
    snprintf(text, size, "0000:01:00.0");
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    (void)device, (void)peer;
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    const device_model *model = rehearsal_device();
    (void)device;
    switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = model->major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = model->minor; break;
    case cudaDevAttrMultiProcessorCount: *value = model->processors; break;
    case cudaDevAttrL2CacheSize: *value = model->l2_bytes; break;
    case cudaDevAttrClockRate: *value = model->clock_khz; break;
    case cudaDevAttrMemoryClockRate: *value = model->memory_clock_khz; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxBlockDimX: *value = 1024; break;
    case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *value = 65535; break;
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = model->shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = model->shared_per_processor; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    case cudaDevAttrTextureAlignment: *value = 512; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default:
        return rehearsal_refuse(cudaErrorNotSupported, "the stand-in has no device attribute %d",
                                (int)attribute);
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    const device_model *model = rehearsal_device();
    if (device != 0)
        return rehearsal_refuse(cudaErrorInvalidDevice, "cudaGetDeviceProperties(%d)", device);
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, model->name);
    memcpy(properties->uuid.bytes, "rehearsed device", 16);
    properties->major = model->major;
    properties->minor = model->minor;
    properties->multiProcessorCount = model->processors;
    properties->l2CacheSize = model->l2_bytes;
    cudaMemGetInfo(&(size_t){0}, &properties->totalGlobalMem);
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->regsPerBlock = 65536;
    properties->regsPerMultiprocessor = 65536;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = model->shared_per_block;
    properties->sharedMemPerMultiprocessor = model->shared_per_processor;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->memoryBusWidth = 5120;
    properties->pciBusID = 1;
    properties->concurrentKernels = 1;
    properties->cooperativeLaunch = 1;
    properties->unifiedAddressing = 1;
    return cudaSuccess;
}
