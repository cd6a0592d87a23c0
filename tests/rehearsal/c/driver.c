/* The driver API: what Triton, inductor and torch's own libraries ask of libcuda. */
#include "stand_in.h"
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool rehearsal_launch_fits(const work *what);

struct CUctx_st { int unused; };
static struct CUctx_st the_context;

struct CUmod_st { int64_t number; };
struct CUfunc_st { int64_t module; unsigned most_shared_bytes; char name[]; };

CUresult cuInit(unsigned flags) { (void)flags; return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    /* The runtime numbers the attributes as the driver does, and so it does its errors. */
    return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device);
}

CUresult cuDeviceGetName(char *text, int size, CUdevice device)
{
    (void)device;
    snprintf(text, size, "%s", rehearsal_device()->name);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { *context = &the_context; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { (void)context; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    (void)device;
    *context = &the_context;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active)
{
    (void)device;
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text)
{
    *text = cudaGetErrorString((cudaError_t)code);
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult code, const char **text)
{
    *text = cudaGetErrorName((cudaError_t)code);
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    *module = malloc(sizeof **module);
    (*module)->number = rehearsal_new_module(image);
    return CUDA_SUCCESS;
}

static char *whole_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *content = calloc(size + 1, 1);
    size_t got = fread(content, 1, size, file);
    fclose(file);
    if (got == (size_t)size) return content;
    free(content);
    return NULL;
}

CUresult cuModuleLoad(CUmodule *module, const char *path)
{
    char *image = whole_file(path);
    if (!image) return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult error = cuModuleLoadData(module, image);
    free(image);
    return error;
}

CUresult cuModuleUnload(CUmodule module)
{
    free(module);
    return CUDA_SUCCESS;
}

/* Functions are never freed: graphs and counts keep their names. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    *function = malloc(sizeof **function + strlen(name) + 1);
    (*function)->module = module->number;
    (*function)->most_shared_bytes = 49152;
    strcpy((*function)->name, name);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function->most_shared_bytes; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = 0; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = 0; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value < 0 || value > rehearsal_device()->shared_per_block) return CUDA_ERROR_INVALID_VALUE;
    function->most_shared_bytes = value;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config)
{
    (void)function, (void)config;
    return CUDA_SUCCESS;
}

static CUresult launch(CUfunction function, work what, CUstream on)
{
    what.kind = DRIVER_LAUNCH;
    what.name = function->name;
    what.module = function->module;
    if (!rehearsal_launch_fits(&what) || what.shared_bytes > function->most_shared_bytes)
        return (CUresult)rehearsal_refuse(
            cudaErrorInvalidValue, "%s with grid (%u, %u, %u), block (%u, %u, %u), %u shared bytes",
            what.name, what.grid[0], what.grid[1], what.grid[2], what.block[0], what.block[1],
            what.block[2], what.shared_bytes);
    return (CUresult)rehearsal_submit(&what, (cudaStream_t)on);
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z,
                        unsigned shared_bytes, CUstream on, void **parameters, void **extra)
{
    if (extra) return CUDA_ERROR_NOT_SUPPORTED;
    work what = {
        .grid = {grid_x, grid_y, grid_z},
        .block = {block_x, block_y, block_z},
        .shared_bytes = shared_bytes,
        .parameters = parameters,
    };
    return launch(function, what, on);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                   unsigned grid_z, unsigned block_x, unsigned block_y,
                                   unsigned block_z, unsigned shared_bytes, CUstream on,
                                   void **parameters)
{
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z,
                          shared_bytes, on, parameters, NULL);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra)
{
    return cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ,
                          config->blockDimX, config->blockDimY, config->blockDimZ,
                          config->sharedMemBytes, config->hStream, parameters, extra);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, CUfunction function, int threads,
                                                     size_t shared_bytes)
{
    return (CUresult)cudaOccupancyMaxActiveBlocksPerMultiprocessor(count, function, threads,
                                                                   shared_bytes);
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address)
{
    struct cudaPointerAttributes found;
    cudaPointerGetAttributes(&found, (const void *)address);
    if (!found.devicePointer) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = address; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = 0; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = found.type == cudaMemoryTypeDevice ? CU_MEMORYTYPE_DEVICE
                                                                : CU_MEMORYTYPE_HOST;
        break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* The stand-in speaks on stderr alone. */
CUresult cuLogsRegisterCallback(CUlogsCallback callback, void *data, CUlogsCallbackHandle *handle)
{
    (void)callback, (void)data;
    *handle = (CUlogsCallbackHandle)&the_context;
    return CUDA_SUCCESS;
}

CUresult cuLogsUnregisterCallback(CUlogsCallbackHandle handle)
{
    (void)handle;
    return CUDA_SUCCESS;
}
