/* Declarations shared by the files of the stand-in. One lock guards all state. Python is never
   called while the lock is held. */
#pragma once
#include <cuda_runtime_api.h>
#include <library_types.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- errors.c: every refusal is printed on stderr, and cudaGetLastError returns it. */
cudaError_t rehearsal_refuse(cudaError_t code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- lock.c */
void rehearsal_lock(void);
void rehearsal_unlock(void);
static inline void unlock_at_end(const int *unused) { (void)unused; rehearsal_unlock(); }
/* Holds the lock until the enclosing block ends. */
#define LOCKED                                                    \
    __attribute__((cleanup(unlock_at_end), unused)) int held = 0; \
    rehearsal_lock()

/* ---- device.c */
typedef struct {
    const char *name;
    int major, minor, processors, l2_bytes, clock_khz, memory_clock_khz;
    int shared_per_block, shared_per_processor;
    double bytes_per_ns, host_bytes_per_ns;
} device_model;
const device_model *rehearsal_device(void);

/* ---- memory.c */
typedef enum { NOT_OURS, DEVICE_MEMORY, HOST_MEMORY } memory_kind;
/* The kind of `bytes` bytes at `address`; NOT_OURS also if they reach beyond their allocation. */
memory_kind rehearsal_memory_kind(const void *address, size_t bytes);

/* ---- clock.c: times are nanoseconds of CLOCK_MONOTONIC. */
int64_t rehearsal_now(void);
void rehearsal_wait_until(int64_t time);

/* ---- work.c: the work that can be submitted to a stream. */
typedef enum {
    KERNEL,       /* launched through the runtime (ATen's): does nothing */
    DRIVER_LAUNCH, /* launched through the driver (Triton's, inductor's): the executor runs it */
    PRODUCT,      /* a matrix product of cuBLAS or cuBLASLt: the executor computes it */
    COPY,
    FILL,
    HOST_FUNCTION,
    EVENT_RECORD,
    CHILD_GRAPH,
    PYTHON, /* a node that Python appended during a capture */
    WORK_KINDS
} work_kind;

typedef struct {
    void *to;
    const void *from;
    size_t to_pitch, from_pitch, width, height;
    enum cudaMemcpyKind kind;
} copy_work;

typedef struct {
    void *to;
    size_t pitch, width, height;
    int value;
} fill_work;

/* A matrix product, D = epilogue(alpha op(A) op(B) + beta C), columns contiguous as in BLAS. */
typedef struct {
    int64_t m, n, k;
    int64_t ld_a, ld_b, ld_c, ld_d;
    int64_t batch, stride_a, stride_b, stride_c, stride_d;
    const void *a, *b, *c;
    void *d;
    const void *alpha, *beta; /* addresses; alpha_value and beta_value hold the numbers later */
    const void *bias;
    void *aux;
    int64_t ld_aux;
    double alpha_value, beta_value;
    int transpose_a, transpose_b; /* cublasOperation_t */
    int type_a, type_b, type_c, type_d, type_bias, type_scale; /* cudaDataType */
    int compute;       /* cublasComputeType_t */
    int epilogue;      /* cublasLtEpilogue_t */
    int device_scalars; /* alpha and beta are read from device memory when the product runs */
    int pointer_arrays; /* a, b, d (= c) are arrays of `batch` pointers */
} product_work;

typedef struct graph graph;
typedef struct event event;

typedef struct {
    work_kind kind;
    const char *name; /* static, or owned by a module */
    unsigned grid[3], block[3], shared_bytes;
    int64_t module;   /* of a DRIVER_LAUNCH, numbered by driver/modules.c */
    void **parameters; /* of a DRIVER_LAUNCH: valid only during the call */
    int64_t node;     /* the executor's number of a captured launch, or Python's of its own node */
    union {
        copy_work copy;
        fill_work fill;
        product_work product;
        struct { cudaHostFn_t call; void *argument; } host;
        event *record;
        graph *child;
    };
} work;

/* Performs `what` now, or appends it as a node if the stream is capturing. */
cudaError_t rehearsal_submit(work *what, cudaStream_t stream);
/* Performs work now, or at a graph's replay; returns 0 or the executor's error. */
int rehearsal_perform(work *what, bool replayed);
/* The device time that the stand-in assumes for it. */
int64_t rehearsal_duration(const work *what);

/* ---- streams.c */
typedef struct {
    int *nodes;
    int count, capacity;
} node_set; /* the nodes on which the next work depends */

enum { QUEUE = 1024 }; /* as on a GPU, the host waits if a stream holds this many launches */

typedef struct capture capture;
typedef struct stream {
    int number;
    bool blocking; /* whether it synchronises with the legacy stream */
    int priority;
    capture *capture;
    node_set leaves;
    cudaGraphNode_t *handles; /* of the leaves, as last returned by cudaStreamGetCaptureInfo */
    int64_t busy_until;
    int64_t queued[QUEUE]; /* when the last launches end */
    unsigned launches;
    struct stream *next;
} stream;

struct event {
    bool recorded, timed;
    int64_t time;
    unsigned long long capture_id; /* of the capture in which it was last recorded, or 0 */
    node_set leaves;
};

extern stream rehearsal_legacy;
stream *rehearsal_stream(cudaStream_t handle);
stream *rehearsal_first_stream(void);
void rehearsal_occupy(stream *s, int64_t duration);
int64_t rehearsal_device_busy_until(void);
void rehearsal_add_nodes(node_set *set, const node_set *more);
void rehearsal_set_node(node_set *set, int node);

/* ---- capture.c: the rules. */
struct capture {
    unsigned long long id;
    enum cudaStreamCaptureMode mode;
    pthread_t thread;
    stream *origin;
    graph *graph;
    bool invalid;
    capture *next;
};
/* Checks an API call that CUDA considers unsafe during a capture; returns 0 or the refusal. */
cudaError_t rehearsal_unsafe(const char *api);
/* Checks a call that waits for or queries `s`; returns 0 or the refusal. */
cudaError_t rehearsal_may_ask(const char *api, stream *s);
/* Checks new work on `s`; returns 0 or the refusal. */
cudaError_t rehearsal_may_submit(const char *what, stream *s);
capture *rehearsal_capture_by_id(unsigned long long id);
cudaError_t rehearsal_join(stream *s, event *e);

/* ---- graphs.c */
typedef struct {
    work work;
    node_set after;
    int64_t ends; /* end time of its last replay */
} node;
struct graph {
    node *nodes;
    int count, capacity;
    int owners;
};
graph *rehearsal_new_graph(void);
void rehearsal_release_graph(graph *g);
int rehearsal_append(graph *g, const work *what, const node_set *after);
/* Performs all nodes; returns 0 or the executor's error. */
int rehearsal_replay(graph *g);
/* The time at which a replay from `start` ends. */
int64_t rehearsal_graph_ends(graph *g, int64_t start);

/* ---- work.c: Python's callbacks. */
typedef struct {
    int64_t (*launch)(int64_t module, const char *name, const unsigned *grid, const unsigned *block,
                      unsigned shared_bytes, void **parameters, int capturing);
    int64_t (*product)(const product_work *product);
    int64_t (*replay)(int64_t node);
    int64_t (*aten)(const char *name); /* a kernel of ATen's, which is not executed */
} executor;
extern executor rehearsal_executor;

/* ---- log.c: the entries that Python's counting reads. */
enum {
    LOG_SYNCHRONISE = WORK_KINDS,
    LOG_ALLOCATE,
    LOG_FREE,
    LOG_GRAPH_LAUNCH,
    LOG_CAPTURED /* `bytes` holds the number of nodes of a capture that ended */
};
enum { CAPTURED = 1, LEGACY = 2 };
typedef struct {
    const char *name;
    uint64_t bytes;
    int32_t kind, flags, copy_kind, unused;
    uint32_t grid[3], block[3], shared_bytes;
} log_entry;
void rehearsal_log(int kind, const char *name, uint64_t bytes);
void rehearsal_log_work(const work *what, int flags);
