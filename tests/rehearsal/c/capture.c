/* Stream capture: how it begins, spreads and ends, and the calls that CUDA refuses meanwhile. */
#include "stand_in.h"
#include <stdlib.h>

static capture *captures;
static unsigned long long last_id;
static _Thread_local enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static bool is_mine(const capture *c) { return pthread_equal(c->thread, pthread_self()); }

capture *rehearsal_capture_by_id(unsigned long long id)
{
    capture *c = captures;
    while (c && c->id != id) c = c->next;
    return c;
}

static cudaError_t invalidate(capture *c, cudaError_t code, const char *what)
{
    c->invalid = true;
    return rehearsal_refuse(code, "%s while stream %d captures", what, c->origin->number);
}

/* The rule of cudaThreadExchangeStreamCaptureMode. */
static bool forbids_unsafe_calls(const capture *c)
{
    if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
    if (is_mine(c)) return c->mode != cudaStreamCaptureModeRelaxed;
    return thread_mode == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal;
}

cudaError_t rehearsal_unsafe(const char *api)
{
    for (capture *c = captures; c; c = c->next)
        if (forbids_unsafe_calls(c)) return invalidate(c, cudaErrorStreamCaptureUnsupported, api);
    return cudaSuccess;
}

cudaError_t rehearsal_may_ask(const char *api, stream *s)
{
    if (s->capture) return invalidate(s->capture, cudaErrorStreamCaptureUnsupported, api);
    return rehearsal_unsafe(api);
}

/* CUDA itself refuses the legacy stream only while a blocking stream captures. While torch's
   non-blocking streams capture, work on the legacy stream would run at once and be missing from the
   graph, so that is an error here too. */
static bool forbids_legacy_stream(const capture *c)
{
    if (c->origin->blocking || c->mode == cudaStreamCaptureModeGlobal) return true;
    return c->mode == cudaStreamCaptureModeThreadLocal && is_mine(c);
}

cudaError_t rehearsal_may_submit(const char *what, stream *s)
{
    if (s->capture)
        return s->capture->invalid
                   ? rehearsal_refuse(cudaErrorStreamCaptureInvalidated, "%s", what)
                   : cudaSuccess;
    if (s != &rehearsal_legacy) return cudaSuccess;
    for (capture *c = captures; c; c = c->next)
        if (forbids_legacy_stream(c)) return invalidate(c, cudaErrorStreamCaptureImplicit, what);
    return cudaSuccess;
}

static cudaError_t join_capture(stream *s, event *e, capture *c)
{
    if (c->invalid)
        return rehearsal_refuse(cudaErrorStreamCaptureInvalidated, "cudaStreamWaitEvent");
    if (s == &rehearsal_legacy)
        return invalidate(c, cudaErrorStreamCaptureImplicit, "cudaStreamWaitEvent");
    if (s->capture && s->capture != c) {
        s->capture->invalid = true;
        return invalidate(c, cudaErrorStreamCaptureMerge, "cudaStreamWaitEvent");
    }
    if (!s->capture) s->leaves.count = 0;
    s->capture = c;
    rehearsal_add_nodes(&s->leaves, &e->leaves);
    return cudaSuccess;
}

cudaError_t rehearsal_join(stream *s, event *e)
{
    if (!e->recorded) return cudaSuccess;
    capture *c = rehearsal_capture_by_id(e->capture_id);
    if (c) return join_capture(s, e, c);
    if (s->capture)
        return invalidate(s->capture, cudaErrorStreamCaptureIsolation,
                          "cudaStreamWaitEvent for an event from outside,");
    return rehearsal_refuse(cudaErrorCapturedEvent, "cudaStreamWaitEvent");
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode)
{
    LOCKED;
    stream *s = rehearsal_stream(handle);
    if (s == &rehearsal_legacy || s->capture)
        return rehearsal_refuse(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture");
    capture *c = malloc(sizeof *c);
    *c = (capture){++last_id, mode, pthread_self(), s, rehearsal_new_graph(), false, captures};
    captures = c;
    s->capture = c;
    s->leaves.count = 0;
    return cudaSuccess;
}

/* The last node of the stream in which the capture began must depend on all other nodes. */
static bool is_joined(const capture *c)
{
    const graph *g = c->graph;
    bool *reached = calloc(g->count + 1, sizeof *reached), all = true;
    for (int i = 0; i < c->origin->leaves.count; i++) reached[c->origin->leaves.nodes[i]] = true;
    for (int i = g->count - 1; i >= 0; i--) {
        all = all && reached[i];
        for (int j = 0; j < g->nodes[i].after.count; j++)
            reached[g->nodes[i].after.nodes[j]] = true;
    }
    free(reached);
    return all;
}

static void forget(capture *c)
{
    for (stream *s = rehearsal_first_stream(); s; s = s->next)
        if (s->capture == c) {
            s->capture = NULL;
            s->leaves.count = 0;
        }
    for (capture **link = &captures; *link; link = &(*link)->next)
        if (*link == c) {
            *link = c->next;
            break;
        }
    free(c);
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *made)
{
    LOCKED;
    stream *s = rehearsal_stream(handle);
    capture *c = s->capture;
    *made = NULL;
    if (!c) return rehearsal_refuse(cudaErrorIllegalState, "cudaStreamEndCapture");
    if (c->origin != s) {
        c->invalid = true;
        return rehearsal_refuse(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture");
    }
    if (c->mode != cudaStreamCaptureModeRelaxed && !is_mine(c))
        return rehearsal_refuse(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture");
    cudaError_t error = cudaSuccess;
    if (c->invalid)
        error = rehearsal_refuse(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture");
    else if (!is_joined(c))
        error = rehearsal_refuse(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture");
    if (error) {
        rehearsal_release_graph(c->graph);
    } else {
        *made = (cudaGraph_t)c->graph;
        rehearsal_log(LOG_CAPTURED, "cudaStreamEndCapture", c->graph->count);
    }
    forget(c);
    return error;
}

static enum cudaStreamCaptureStatus status_of(const stream *s)
{
    if (!s->capture) return cudaStreamCaptureStatusNone;
    return s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status)
{
    LOCKED;
    *status = status_of(rehearsal_stream(handle));
    return cudaSuccess;
}

/* A node's handle is its number in its graph, counted from 1. */
static const cudaGraphNode_t *handles_of(stream *s)
{
    s->handles = realloc(s->handles, (s->leaves.count + 1) * sizeof *s->handles);
    for (int i = 0; i < s->leaves.count; i++)
        s->handles[i] = (cudaGraphNode_t)(intptr_t)(s->leaves.nodes[i] + 1);
    return s->handles;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *made,
                                     const cudaGraphNode_t **after,
                                     const cudaGraphEdgeData **edges, size_t *count)
{
    LOCKED;
    stream *s = rehearsal_stream(handle);
    *status = status_of(s);
    if (!s->capture) return cudaSuccess;
    if (id) *id = s->capture->id;
    if (made) *made = (cudaGraph_t)s->capture->graph;
    if (after) *after = handles_of(s);
    if (edges) *edges = NULL;
    if (count) *count = s->leaves.count;
    return cudaSuccess;
}

/* Appends a node of Python's to the capture of `stream`. The executor replays it. */
int rehearsal_append_node(cudaStream_t stream, int64_t id)
{
    enum cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(stream, &status);
    if (status != cudaStreamCaptureStatusActive) return -1;
    work node = {.kind = PYTHON, .name = "python", .node = id};
    return rehearsal_submit(&node, stream);
}
