/* Streams and events: when a stream is idle again, and which captured nodes its next work
   follows. */
#include "stand_in.h"
#include <stdlib.h>
#include <string.h>

stream rehearsal_legacy = {.blocking = true};
static stream *streams = &rehearsal_legacy;
static int made;

stream *rehearsal_first_stream(void) { return streams; }

stream *rehearsal_stream(cudaStream_t handle)
{
    bool legacy = !handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
    return legacy ? &rehearsal_legacy : (stream *)handle;
}

void rehearsal_set_node(node_set *set, int node)
{
    set->count = 0;
    rehearsal_add_nodes(set, &(node_set){&node, 1, 1});
}

static bool has(const node_set *set, int node)
{
    for (int i = 0; i < set->count; i++)
        if (set->nodes[i] == node) return true;
    return false;
}

void rehearsal_add_nodes(node_set *set, const node_set *more)
{
    for (int i = 0; i < more->count; i++) {
        if (has(set, more->nodes[i])) continue;
        if (set->count == set->capacity) {
            set->capacity = set->capacity ? 2 * set->capacity : 4;
            set->nodes = realloc(set->nodes, set->capacity * sizeof *set->nodes);
        }
        set->nodes[set->count++] = more->nodes[i];
    }
}

/* The legacy stream and every blocking stream wait for each other. */
static int64_t earliest_start(const stream *s)
{
    int64_t start = rehearsal_now();
    for (const stream *other = streams; other; other = other->next) {
        bool legacy = s == &rehearsal_legacy || other == &rehearsal_legacy;
        bool awaited = other == s || (legacy && s->blocking && other->blocking);
        if (awaited && other->busy_until > start) start = other->busy_until;
    }
    return start;
}

/* Waits while the stream's queue is full, then appends work that lasts `duration`. */
void rehearsal_occupy(stream *s, int64_t duration)
{
    int64_t *slot = &s->queued[s->launches++ % QUEUE];
    while (*slot > rehearsal_now()) {
        int64_t until = *slot;
        rehearsal_unlock();
        rehearsal_wait_until(until);
        rehearsal_lock();
    }
    s->busy_until = earliest_start(s) + duration;
    *slot = s->busy_until;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int priority)
{
    LOCKED;
    stream *s = calloc(1, sizeof *s);
    s->number = ++made;
    s->blocking = !(flags & cudaStreamNonBlocking);
    s->priority = priority;
    s->next = streams;
    streams = s;
    *handle = (cudaStream_t)s;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags)
{
    return cudaStreamCreateWithPriority(handle, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *handle)
{
    return cudaStreamCreateWithPriority(handle, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    LOCKED;
    for (stream **link = &streams; *link; link = &(*link)->next)
        if (*link == (stream *)handle && *link != &rehearsal_legacy) {
            *link = (*link)->next;
            free(((stream *)handle)->leaves.nodes);
            free(((stream *)handle)->handles);
            free(handle);
            return cudaSuccess;
        }
    return rehearsal_refuse(cudaErrorInvalidResourceHandle, "cudaStreamDestroy");
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority)
{
    LOCKED;
    *priority = rehearsal_stream(handle)->priority;
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    LOCKED;
    stream *s = rehearsal_stream(handle);
    cudaError_t error = rehearsal_may_ask("cudaStreamQuery", s);
    if (error) return error;
    return s->busy_until > rehearsal_now() ? cudaErrorNotReady : cudaSuccess;
}

static void wait_for(const char *api, int64_t until)
{
    rehearsal_log(LOG_SYNCHRONISE, api, 0);
    rehearsal_unlock();
    rehearsal_wait_until(until);
    rehearsal_lock();
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    LOCKED;
    stream *s = rehearsal_stream(handle);
    cudaError_t error = rehearsal_may_ask("cudaStreamSynchronize", s);
    if (!error) wait_for("cudaStreamSynchronize", s->busy_until);
    return error;
}

int64_t rehearsal_device_busy_until(void)
{
    int64_t last = 0;
    for (stream *s = streams; s; s = s->next)
        if (s->busy_until > last) last = s->busy_until;
    return last;
}

cudaError_t cudaDeviceSynchronize(void)
{
    LOCKED;
    cudaError_t error = rehearsal_unsafe("cudaDeviceSynchronize");
    if (!error) wait_for("cudaDeviceSynchronize", rehearsal_device_busy_until());
    return error;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned flags)
{
    event *e = calloc(1, sizeof *e);
    e->timed = !(flags & cudaEventDisableTiming);
    *handle = (cudaEvent_t)e;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *handle) { return cudaEventCreateWithFlags(handle, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
    free(((event *)handle)->leaves.nodes);
    free(handle);
    return cudaSuccess;
}

/* With cudaEventRecordExternal, a captured record becomes a node that each replay performs. */
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t of, unsigned flags)
{
    event *e = (event *)handle;
    rehearsal_lock();
    stream *s = rehearsal_stream(of);
    cudaError_t error = rehearsal_may_submit("cudaEventRecord", s);
    bool external = !error && s->capture && (flags & cudaEventRecordExternal);
    if (!error && !external) {
        e->recorded = true;
        e->capture_id = s->capture ? s->capture->id : 0;
        e->leaves.count = 0;
        rehearsal_add_nodes(&e->leaves, &s->leaves);
        int64_t now = rehearsal_now();
        e->time = s->busy_until > now ? s->busy_until : now;
    }
    rehearsal_unlock();
    if (!external) return error;
    work record = {.kind = EVENT_RECORD, .name = "cudaEventRecord", .record = e};
    return rehearsal_submit(&record, of);
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t of)
{
    return cudaEventRecordWithFlags(handle, of, cudaEventRecordDefault);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t awaited, unsigned flags)
{
    (void)flags;
    LOCKED;
    stream *s = rehearsal_stream(handle);
    event *e = (event *)awaited;
    if (s->capture || e->capture_id) return rehearsal_join(s, e);
    if (e->recorded && e->time > s->busy_until) s->busy_until = e->time;
    return cudaSuccess;
}

static cudaError_t refuse_captured(const char *api, const event *e)
{
    return e->capture_id ? rehearsal_refuse(cudaErrorCapturedEvent, "%s", api) : cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle)
{
    LOCKED;
    event *e = (event *)handle;
    cudaError_t error = refuse_captured("cudaEventQuery", e);
    if (!error) error = rehearsal_unsafe("cudaEventQuery");
    if (error) return error;
    return e->recorded && e->time > rehearsal_now() ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle)
{
    LOCKED;
    event *e = (event *)handle;
    cudaError_t error = refuse_captured("cudaEventSynchronize", e);
    if (!error) error = rehearsal_unsafe("cudaEventSynchronize");
    if (!error) wait_for("cudaEventSynchronize", e->recorded ? e->time : 0);
    return error;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first, cudaEvent_t second)
{
    LOCKED;
    event *from = (event *)first, *to = (event *)second;
    cudaError_t error = refuse_captured("cudaEventElapsedTime", from);
    if (!error) error = refuse_captured("cudaEventElapsedTime", to);
    if (error) return error;
    if (!from->recorded || !to->recorded || !from->timed || !to->timed)
        return rehearsal_refuse(cudaErrorInvalidResourceHandle,
                                "cudaEventElapsedTime of an event that has no time");
    int64_t now = rehearsal_now();
    if (from->time > now || to->time > now) return cudaErrorNotReady;
    *milliseconds = (float)((to->time - from->time) * 1e-6);
    return cudaSuccess;
}
