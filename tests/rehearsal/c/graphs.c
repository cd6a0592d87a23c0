/* Captured graphs: the nodes are kept in the order of capture and replayed one after the other. */
#include "stand_in.h"
#include <stdlib.h>

graph *rehearsal_new_graph(void)
{
    graph *g = calloc(1, sizeof *g);
    g->owners = 1;
    return g;
}

void rehearsal_release_graph(graph *g)
{
    if (--g->owners) return;
    for (int i = 0; i < g->count; i++) {
        if (g->nodes[i].work.kind == CHILD_GRAPH) rehearsal_release_graph(g->nodes[i].work.child);
        free(g->nodes[i].after.nodes);
    }
    free(g->nodes);
    free(g);
}

int rehearsal_append(graph *g, const work *what, const node_set *after)
{
    if (g->count == g->capacity) {
        g->capacity = g->capacity ? 2 * g->capacity : 64;
        g->nodes = realloc(g->nodes, g->capacity * sizeof *g->nodes);
    }
    node *made = &g->nodes[g->count];
    *made = (node){.work = *what};
    rehearsal_add_nodes(&made->after, after);
    return g->count++;
}

int rehearsal_replay(graph *g)
{
    int error = 0;
    for (int i = 0; i < g->count && !error; i++) error = rehearsal_perform(&g->nodes[i].work, true);
    return error;
}

/* A node starts when all nodes that it depends on have ended, so branches run concurrently. */
static int64_t node_ends(graph *g, node *n, int64_t start)
{
    for (int i = 0; i < n->after.count; i++) {
        int64_t before = g->nodes[n->after.nodes[i]].ends;
        if (before > start) start = before;
    }
    if (n->work.kind == CHILD_GRAPH) return rehearsal_graph_ends(n->work.child, start);
    if (n->work.kind == EVENT_RECORD) {
        n->work.record->recorded = true;
        n->work.record->time = start;
    }
    return start + rehearsal_duration(&n->work);
}

int64_t rehearsal_graph_ends(graph *g, int64_t start)
{
    int64_t end = start;
    for (int i = 0; i < g->count; i++) {
        node *n = &g->nodes[i];
        n->ends = node_ends(g, n, start);
        if (n->ends > end) end = n->ends;
    }
    return end;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t from,
                                          unsigned long long flags)
{
    LOCKED;
    (void)flags;
    ((graph *)from)->owners++;
    *made = (cudaGraphExec_t)from;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t from, unsigned long long flags)
{
    return cudaGraphInstantiateWithFlags(made, from, flags);
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle)
{
    LOCKED;
    rehearsal_release_graph((graph *)handle);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle)
{
    return cudaGraphDestroy((cudaGraph_t)handle);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t *nodes, size_t *count)
{
    LOCKED;
    if (nodes) return rehearsal_refuse(cudaErrorNotSupported, "cudaGraphGetNodes asked for nodes");
    *count = ((graph *)handle)->count;
    return cudaSuccess;
}

static cudaError_t capture_child(graph *g, cudaStream_t stream)
{
    rehearsal_lock();
    g->owners++;
    rehearsal_unlock();
    work child = {.kind = CHILD_GRAPH, .name = "cudaGraphLaunch", .child = g};
    return rehearsal_submit(&child, stream);
}

static cudaError_t start_replay(graph *g, stream *s)
{
    LOCKED;
    cudaError_t error = rehearsal_may_submit("cudaGraphLaunch", s);
    if (error) return error;
    rehearsal_log(LOG_GRAPH_LAUNCH, "cudaGraphLaunch", g->count);
    int64_t duration = rehearsal_graph_ends(g, 0);
    rehearsal_occupy(s, duration);
    rehearsal_graph_ends(g, s->busy_until - duration); /* the times of external events */
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t on)
{
    graph *g = (graph *)handle;
    enum cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(on, &status);
    if (status != cudaStreamCaptureStatusNone) return capture_child(g, on);
    cudaError_t error = start_replay(g, rehearsal_stream(on));
    if (error) return error;
    return rehearsal_replay(g)
               ? rehearsal_refuse(cudaErrorLaunchFailure, "the executor of a graph failed")
               : cudaSuccess;
}
