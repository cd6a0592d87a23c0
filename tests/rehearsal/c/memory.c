/* Device memory is host memory. Fresh memory is filled with NaN instead of zeros. */
#include "stand_in.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { POISON = 0xff }; /* NaN in every floating-point type, -1 in every integer */
static const size_t poisoned_at_most = 64u << 20; /* bytes; the rest of an allocation is zero */

typedef struct allocation {
    char *start;
    size_t bytes;
    memory_kind kind;
    struct allocation *next;
} allocation;

static allocation *allocations;
static size_t limit = (size_t)80 << 30, used;

/* Python calls this to set the size of the device's memory. */
void rehearsal_set_memory(size_t bytes)
{
    LOCKED;
    limit = bytes;
}

static size_t page_multiple(size_t bytes) { return (bytes + 4096) / 4096 * 4096; }

static void *allocate(size_t bytes, memory_kind kind)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *start = mmap(NULL, page_multiple(bytes), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (start == MAP_FAILED) return NULL;
    memset(start, POISON, bytes < poisoned_at_most ? bytes : poisoned_at_most);
    allocation *made = malloc(sizeof *made);
    *made = (allocation){start, bytes, kind, allocations};
    allocations = made;
    return start;
}

static size_t release(void *start)
{
    for (allocation **link = &allocations; *link; link = &(*link)->next)
        if ((*link)->start == start) {
            allocation *gone = *link;
            size_t bytes = gone->bytes;
            *link = gone->next;
            munmap(start, page_multiple(bytes));
            free(gone);
            return bytes;
        }
    return (size_t)-1;
}

memory_kind rehearsal_memory_kind(const void *address, size_t bytes)
{
    const char *first = address;
    for (allocation *a = allocations; a; a = a->next)
        if (first >= a->start && first + bytes <= a->start + a->bytes) return a->kind;
    return NOT_OURS;
}

cudaError_t cudaMalloc(void **address, size_t bytes)
{
    LOCKED;
    cudaError_t error = rehearsal_unsafe("cudaMalloc");
    if (error) return error;
    rehearsal_log(LOG_ALLOCATE, "cudaMalloc", bytes);
    *address = used + bytes > limit ? NULL : allocate(bytes, DEVICE_MEMORY);
    if (!*address)
        return rehearsal_refuse(cudaErrorMemoryAllocation, "cudaMalloc of %zu bytes, %zu in use",
                                bytes, used);
    used += bytes;
    return cudaSuccess;
}

/* Waits for the whole device, as CUDA does. */
cudaError_t cudaFree(void *address)
{
    LOCKED;
    cudaError_t error = rehearsal_unsafe("cudaFree");
    if (error || !address) return error;
    size_t bytes = release(address);
    if (bytes == (size_t)-1)
        return rehearsal_refuse(cudaErrorInvalidValue, "cudaFree, address not from cudaMalloc");
    rehearsal_log(LOG_FREE, "cudaFree", bytes);
    used -= bytes;
    int64_t until = rehearsal_device_busy_until();
    rehearsal_unlock();
    rehearsal_wait_until(until);
    rehearsal_lock();
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags)
{
    LOCKED;
    (void)flags;
    cudaError_t error = rehearsal_unsafe("cudaHostAlloc");
    if (error) return error;
    rehearsal_log(LOG_ALLOCATE, "cudaHostAlloc", bytes);
    *address = allocate(bytes, HOST_MEMORY);
    return *address ? cudaSuccess
                    : rehearsal_refuse(cudaErrorMemoryAllocation, "cudaHostAlloc of %zu", bytes);
}

cudaError_t cudaFreeHost(void *address)
{
    LOCKED;
    cudaError_t error = rehearsal_unsafe("cudaFreeHost");
    if (error || !address) return error;
    if (release(address) == (size_t)-1)
        return rehearsal_refuse(cudaErrorInvalidValue,
                                "cudaFreeHost, address not from cudaHostAlloc");
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    LOCKED;
    *total = limit;
    *free_bytes = limit - used;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address)
{
    LOCKED;
    memory_kind kind = rehearsal_memory_kind(address, 0);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = kind == DEVICE_MEMORY ? cudaMemoryTypeDevice
                       : kind == HOST_MEMORY ? cudaMemoryTypeHost
                                             : cudaMemoryTypeUnregistered;
    attributes->devicePointer = kind == NOT_OURS ? NULL : (void *)address;
    attributes->hostPointer = kind == DEVICE_MEMORY ? NULL : (void *)address;
    return cudaSuccess;
}
