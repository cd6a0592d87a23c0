/* The resources of a function, and its launch. */
#include "modules.h"
#include "stand_in.h"

bool rehearsal_launch_fits(const work *what);

enum { REGISTERS_OF_BLOCK = 65536, WARP = 32, RESERVED_SHARED_BYTES = 1024 };

/* Warps get registers in units of 8 a thread. */
static unsigned registers_of(const struct CUfunc_st *function, unsigned threads)
{
    unsigned warps = (threads + WARP - 1) / WARP;
    return (function->facts.registers + 7u) / 8 * 8 * WARP * warps;
}

static unsigned most_threads(const struct CUfunc_st *function)
{
    unsigned warps = REGISTERS_OF_BLOCK / registers_of(function, WARP);
    return warps * WARP < 1024 ? warps * WARP : 1024;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = most_threads(function); break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = function->facts.registers; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = function->facts.shared_bytes; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = function->facts.local_bytes; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = function->most_shared_bytes;
        break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
    /* Triton 3.8 first tries oversized shared memory, which an A100 and an H100 do not have. */
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return CUDA_ERROR_NOT_SUPPORTED;
    int most = rehearsal_device()->shared_per_block - function->facts.shared_bytes;
    if (value < 0 || value > most) return CUDA_ERROR_INVALID_VALUE;
    function->most_shared_bytes = value;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config)
{
    (void)function, (void)config;
    return CUDA_SUCCESS;
}

static cudaError_t checked_launch(CUfunction function, work *what, CUstream on)
{
    unsigned threads = what->block[0] * what->block[1] * what->block[2];
    bool fits = rehearsal_launch_fits(what) && what->shared_bytes <= function->most_shared_bytes;
    if (!fits || threads > most_threads(function))
        return rehearsal_refuse(
            fits ? cudaErrorLaunchOutOfResources : cudaErrorInvalidValue,
            "%s with grid (%u, %u, %u), block (%u, %u, %u), %d registers, %u shared bytes",
            what->name, what->grid[0], what->grid[1], what->grid[2], what->block[0],
            what->block[1], what->block[2], function->facts.registers, what->shared_bytes);
    return rehearsal_submit(what, (cudaStream_t)on);
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z,
                        unsigned shared_bytes, CUstream on, void **parameters, void **extra)
{
    if (extra) return CUDA_ERROR_NOT_SUPPORTED;
    work what = {
        .kind = DRIVER_LAUNCH,
        .name = function->name,
        .module = function->module,
        .grid = {grid_x, grid_y, grid_z},
        .block = {block_x, block_y, block_z},
        .shared_bytes = shared_bytes,
        .parameters = parameters,
    };
    cudaError_t error = checked_launch(function, &what, on);
    if (error) cudaGetLastError(); /* the driver does not set the runtime's last error */
    return (CUresult)error;
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

static int least(int a, int b) { return a < b ? a : b; }

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, CUfunction function, int threads,
                                                     size_t shared_bytes)
{
    if (threads <= 0 || (unsigned)threads > most_threads(function)) return CUDA_ERROR_INVALID_VALUE;
    int shared = function->facts.shared_bytes + (int)shared_bytes + RESERVED_SHARED_BYTES;
    int by_registers = REGISTERS_OF_BLOCK / registers_of(function, threads);
    int by_threads = 2048 / threads;
    int by_shared = rehearsal_device()->shared_per_processor / shared;
    *count = least(32, least(by_threads, least(by_registers, by_shared)));
    return CUDA_SUCCESS;
}
