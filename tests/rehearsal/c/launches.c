/* Kernels of the runtime (ATen's). Torch's libraries register them. Launches are named and checked,
   but not executed. */
#include "stand_in.h"
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 1 << 19 }; /* torch registers some hundred thousand kernels */
static struct { const void *host; const char *name; } kernels[SLOTS];

static size_t slot_of(const void *host)
{
    size_t slot = ((uintptr_t)host * UINT64_C(0x9E3779B97F4A7C15)) >> 45;
    while (kernels[slot % SLOTS].host && kernels[slot % SLOTS].host != host) slot++;
    return slot % SLOTS;
}

void **__cudaRegisterFatBinary(void *binary)
{
    (void)binary;
    static void *handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
char __cudaInitModule(void **handle) { (void)handle; return 1; }

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int limit, uint3 *thread, uint3 *block, dim3 *block_dim,
                            dim3 *grid_dim, int *warp)
{
    (void)handle, (void)device, (void)limit, (void)thread, (void)block, (void)block_dim;
    (void)grid_dim, (void)warp;
    LOCKED;
    size_t slot = slot_of(host);
    kernels[slot].host = host;
    kernels[slot].name = name;
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external,
                       size_t bytes, int constant, int global)
{
    (void)handle, (void)host, (void)device, (void)name, (void)external, (void)bytes;
    (void)constant, (void)global;
}

static _Thread_local struct { dim3 grid, block; size_t shared_bytes; cudaStream_t on; } pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     struct CUstream_st *on)
{
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared_bytes = shared_bytes;
    pushed.on = on;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *on)
{
    *grid = pushed.grid;
    *block = pushed.block;
    *shared_bytes = pushed.shared_bytes;
    *(cudaStream_t *)on = pushed.on;
    return cudaSuccess;
}

/* The limits of a launch on the devices that the stand-in imitates. */
bool rehearsal_launch_fits(const work *what)
{
    const unsigned *grid = what->grid, *block = what->block;
    bool grid_fits = grid[0] && grid[1] && grid[2] && grid[0] <= 2147483647u && grid[1] <= 65535
                     && grid[2] <= 65535;
    bool block_fits = block[0] && block[1] && block[2] && block[2] <= 64
                      && (uint64_t)block[0] * block[1] * block[2] <= 1024;
    return grid_fits && block_fits
           && what->shared_bytes <= (unsigned)rehearsal_device()->shared_per_block;
}

static cudaError_t launch(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t on)
{
    const char *name = kernels[slot_of(kernel)].name;
    work what = {
        .kind = KERNEL,
        .name = name ? name : "an unregistered kernel",
        .grid = {grid.x, grid.y, grid.z},
        .block = {block.x, block.y, block.z},
        .shared_bytes = (unsigned)shared_bytes,
    };
    if (!rehearsal_launch_fits(&what))
        return rehearsal_refuse(cudaErrorInvalidConfiguration,
                                "%s with grid (%u, %u, %u), block (%u, %u, %u), %zu shared bytes",
                                what.name, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                shared_bytes);
    return rehearsal_submit(&what, on);
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **parameters,
                             size_t shared_bytes, cudaStream_t on)
{
    (void)parameters;
    return launch(kernel, grid, block, shared_bytes, on);
}

cudaError_t __cudaGetKernel(cudaKernel_t *handle, const void *kernel)
{
    *handle = (cudaKernel_t)kernel;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **parameters,
                               size_t shared_bytes, cudaStream_t on)
{
    (void)parameters;
    return launch((const void *)kernel, grid, block, shared_bytes, on);
}

cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block,
                                        void **parameters, size_t shared_bytes, cudaStream_t on)
{
    (void)parameters;
    return launch(kernel, grid, block, shared_bytes, on);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                void **parameters)
{
    (void)parameters;
    return launch(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes,
                  config->stream);
}

/* Plausible values: these kernels are not compiled for the stand-in. */
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel)
{
    const device_model *device = rehearsal_device();
    (void)kernel;
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 10 * device->major + device->minor;
    attributes->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    (void)kernel, (void)attribute, (void)value;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *kernel,
                                                                   int threads, size_t shared_bytes,
                                                                   unsigned flags)
{
    (void)kernel, (void)shared_bytes, (void)flags;
    *count = threads > 0 && threads <= 1024 ? 2048 / threads : 0;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *kernel,
                                                          int threads, size_t shared_bytes)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count, kernel, threads,
                                                                  shared_bytes, 0);
}
