/* Copies and fills: checked against their allocations, and performed at once or at each replay. */
#include "stand_in.h"

static bool is_device(const void *address, size_t bytes)
{
    return rehearsal_memory_kind(address, bytes) == DEVICE_MEMORY;
}

static size_t extent(size_t pitch, size_t width, size_t height)
{
    return height ? (height - 1) * pitch + width : 0;
}

static enum cudaMemcpyKind kind_of(bool to_device, bool from_device)
{
    if (to_device) return from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    return from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

/* Finds the kind of a copy from its addresses and checks that it is the kind that was passed. */
static cudaError_t resolve_kind(const char *api, copy_work *copy)
{
    LOCKED;
    size_t to_bytes = extent(copy->to_pitch, copy->width, copy->height);
    size_t from_bytes = extent(copy->from_pitch, copy->width, copy->height);
    enum cudaMemcpyKind found =
        kind_of(is_device(copy->to, to_bytes), is_device(copy->from, from_bytes));
    if (copy->kind != cudaMemcpyDefault && copy->kind != found)
        return rehearsal_refuse(cudaErrorInvalidValue,
                                "%s of %zu x %zu bytes named kind %d, the addresses are kind %d",
                                api, copy->height, copy->width, copy->kind, found);
    copy->kind = found;
    return cudaSuccess;
}

static cudaError_t submit_copy(const char *api, copy_work copy, cudaStream_t on)
{
    if (!copy.width || !copy.height) return cudaSuccess;
    cudaError_t error = resolve_kind(api, &copy);
    if (error) return error;
    work what = {.kind = COPY, .name = api, .copy = copy};
    return rehearsal_submit(&what, on);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t on)
{
    copy_work copy = {to, from, bytes, bytes, bytes, 1, kind};
    return submit_copy("cudaMemcpyAsync", copy, on);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t on)
{
    copy_work copy = {to, from, to_pitch, from_pitch, width, height, kind};
    return submit_copy("cudaMemcpy2DAsync", copy, on);
}

static cudaError_t refuse_while_capturing(const char *api)
{
    LOCKED;
    return rehearsal_unsafe(api);
}

static cudaError_t wait_for_legacy(const char *api)
{
    rehearsal_lock();
    int64_t until = rehearsal_legacy.busy_until;
    rehearsal_log(LOG_SYNCHRONISE, api, 0);
    rehearsal_unlock();
    rehearsal_wait_until(until);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaError_t error = refuse_while_capturing("cudaMemcpy");
    copy_work copy = {to, from, bytes, bytes, bytes, 1, kind};
    if (!error) error = submit_copy("cudaMemcpy", copy, cudaStreamLegacy);
    return error ? error : wait_for_legacy("cudaMemcpy");
}

static cudaError_t submit_fill(const char *api, fill_work fill, cudaStream_t on)
{
    if (!fill.width || !fill.height) return cudaSuccess;
    rehearsal_lock();
    bool ours = is_device(fill.to, extent(fill.pitch, fill.width, fill.height));
    rehearsal_unlock();
    if (!ours)
        return rehearsal_refuse(cudaErrorInvalidValue, "%s of %zu x %zu bytes, not all allocated",
                                api, fill.height, fill.width);
    work what = {.kind = FILL, .name = api, .fill = fill};
    return rehearsal_submit(&what, on);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t on)
{
    return submit_fill("cudaMemsetAsync", (fill_work){to, bytes, bytes, 1, value}, on);
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    cudaError_t error = refuse_while_capturing("cudaMemset");
    return error ? error
                 : submit_fill("cudaMemset", (fill_work){to, bytes, bytes, 1, value},
                               cudaStreamLegacy);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t on, cudaHostFn_t call, void *argument)
{
    work what = {.kind = HOST_FUNCTION, .name = "cudaLaunchHostFunc", .host = {call, argument}};
    return rehearsal_submit(&what, on);
}
