/* Work submitted to a stream is performed at once, or becomes a node if the stream is capturing. */
#include "stand_in.h"
#include <string.h>

executor rehearsal_executor;

void rehearsal_set_executor(executor callbacks)
{
    LOCKED;
    rehearsal_executor = callbacks;
}

static void perform_copy(const copy_work *copy)
{
    for (size_t row = 0; row < copy->height; row++)
        memmove((char *)copy->to + row * copy->to_pitch,
                (const char *)copy->from + row * copy->from_pitch, copy->width);
}

static void perform_fill(const fill_work *fill)
{
    for (size_t row = 0; row < fill->height; row++)
        memset((char *)fill->to + row * fill->pitch, fill->value, fill->width);
}

static double scalar_at(const void *where, int type)
{
    return type == CUDA_R_64F ? *(const double *)where : (double)*(const float *)where;
}

static void read_scalars(product_work *product)
{
    product->alpha_value = scalar_at(product->alpha, product->type_scale);
    product->beta_value = scalar_at(product->beta, product->type_scale);
}

static int perform_product(product_work product)
{
    if (!rehearsal_executor.product) return 0;
    if (product.device_scalars) read_scalars(&product);
    return rehearsal_executor.product(&product) ? -1 : 0;
}

static int perform_launch(work *what)
{
    if (!rehearsal_executor.launch) return 0;
    return rehearsal_executor.launch(what->module, what->name, what->grid, what->block,
                                     what->shared_bytes, what->parameters, false)
               ? -1
               : 0;
}

static int replay_node(int64_t id)
{
    return id && rehearsal_executor.replay && rehearsal_executor.replay(id) ? -1 : 0;
}

int rehearsal_perform(work *what, bool replayed)
{
    switch (what->kind) {
    case COPY: perform_copy(&what->copy); return 0;
    case FILL: perform_fill(&what->fill); return 0;
    case HOST_FUNCTION: what->host.call(what->host.argument); return 0;
    case PRODUCT: return perform_product(what->product);
    case DRIVER_LAUNCH: return replayed ? replay_node(what->node) : perform_launch(what);
    case PYTHON: return replay_node(what->node);
    case CHILD_GRAPH: return rehearsal_replay(what->child);
    default: return 0;
    }
}

static cudaError_t append(work *what, stream *s)
{
    if (!s->capture) /* the capture ended while the executor handled the launch */
        return rehearsal_refuse(cudaErrorStreamCaptureInvalidated, "%s", what->name);
    int made = rehearsal_append(s->capture->graph, what, &s->leaves);
    rehearsal_set_node(&s->leaves, made);
    rehearsal_log_work(what, CAPTURED);
    return cudaSuccess;
}

/* Passes a launch to the executor, which copies what it needs while the parameters are valid. */
static bool executor_refuses(work *what)
{
    if (what->kind == KERNEL && rehearsal_executor.aten)
        return rehearsal_executor.aten(what->name) != 0;
    if (what->kind != DRIVER_LAUNCH || !rehearsal_executor.launch) return false;
    what->node = rehearsal_executor.launch(what->module, what->name, what->grid, what->block,
                                           what->shared_bytes, what->parameters, true);
    return what->node <= 0;
}

static int64_t work_duration(const work *what)
{
    return what->kind == CHILD_GRAPH ? rehearsal_graph_ends(what->child, 0)
                                     : rehearsal_duration(what);
}

static cudaError_t failed(const work *what)
{
    return rehearsal_refuse(cudaErrorLaunchFailure, "the executor of %s failed", what->name);
}

cudaError_t rehearsal_submit(work *what, cudaStream_t handle)
{
    rehearsal_lock();
    stream *s = rehearsal_stream(handle);
    cudaError_t error = rehearsal_may_submit(what->name, s);
    bool capturing = s->capture != NULL;
    if (!error && !capturing) {
        rehearsal_log_work(what, s == &rehearsal_legacy ? LEGACY : 0);
        rehearsal_occupy(s, work_duration(what));
    }
    rehearsal_unlock();
    if (error) return error;
    if (what->kind == PRODUCT && !what->product.device_scalars) read_scalars(&what->product);
    if ((capturing || what->kind == KERNEL) && executor_refuses(what)) return failed(what);
    if (!capturing) return rehearsal_perform(what, false) ? failed(what) : cudaSuccess;
    LOCKED;
    return append(what, s);
}
