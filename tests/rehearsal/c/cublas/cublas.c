/* cuBLAS: each product is described in full and submitted to its stream, and the executor
   computes it. */
#include "stand_in.h"
/* The headers of these types need files that torch's wheels lack. cuBLAS only declares pointers to
   them. */
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#include <cublas_v2.h>
#include <stdlib.h>

struct cublasContext {
    cudaStream_t on;
    cublasPointerMode_t pointer_mode;
    cublasMath_t math_mode;
};

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t handle, int *version)
{
    (void)handle;
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t on)
{
    handle->on = on;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t bytes)
{
    (void)handle, (void)workspace, (void)bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode)
{
    handle->pointer_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode)
{
    *mode = handle->pointer_mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode)
{
    handle->math_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode)
{
    *mode = handle->math_mode;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t submit(cublasHandle_t handle, const char *name, product_work product)
{
    product.device_scalars = handle->pointer_mode == CUBLAS_POINTER_MODE_DEVICE;
    product.c = product.d;
    product.ld_c = product.ld_d;
    product.stride_c = product.stride_d;
    product.type_c = product.type_d;
    if (product.m <= 0 || product.n <= 0 || !product.batch) return CUBLAS_STATUS_SUCCESS;
    work what = {.kind = PRODUCT, .name = name, .product = product};
    return rehearsal_submit(&what, handle->on) ? CUBLAS_STATUS_EXECUTION_FAILED
                                               : CUBLAS_STATUS_SUCCESS;
}

static int scale_type(cublasComputeType_t compute)
{
    bool wide = compute == CUBLAS_COMPUTE_64F || compute == CUBLAS_COMPUTE_64F_PEDANTIC;
    return wide ? CUDA_R_64F : CUDA_R_32F;
}

static bool knows(cublasComputeType_t compute)
{
    return compute != CUBLAS_COMPUTE_16F && compute != CUBLAS_COMPUTE_16F_PEDANTIC
           && compute != CUBLAS_COMPUTE_32I && compute != CUBLAS_COMPUTE_32I_PEDANTIC;
}

int rehearsal_unknown(const char *name);

/* Products whose operands each have their own type. */

cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t transpose_b, int m,
    int n, int k, const void *alpha, const void *a, cudaDataType type_a, int ld_a,
    long long stride_a, const void *b, cudaDataType type_b, int ld_b, long long stride_b,
    const void *beta, void *c, cudaDataType type_c, int ld_c, long long stride_c, int batch,
    cublasComputeType_t compute, cublasGemmAlgo_t algorithm)
{
    (void)algorithm;
    if (!knows(compute)) {
        rehearsal_unknown("product in half precision or integers");
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    product_work product = {
        .m = m, .n = n, .k = k, .batch = batch,
        .transpose_a = transpose_a, .transpose_b = transpose_b,
        .alpha = alpha, .beta = beta, .type_scale = scale_type(compute), .compute = compute,
        .a = a, .type_a = type_a, .ld_a = ld_a, .stride_a = stride_a,
        .b = b, .type_b = type_b, .ld_b = ld_b, .stride_b = stride_b,
        .d = c, .type_d = type_c, .ld_d = ld_c, .stride_d = stride_c,
    };
    return submit(handle, batch == 1 ? "cublasGemmEx" : "cublasGemmStridedBatchedEx", product);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transpose_a,
                            cublasOperation_t transpose_b, int m, int n, int k, const void *alpha,
                            const void *a, cudaDataType type_a, int ld_a, const void *b,
                            cudaDataType type_b, int ld_b, const void *beta, void *c,
                            cudaDataType type_c, int ld_c, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm)
{
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, type_a,
                                      ld_a, 0, b, type_b, ld_b, 0, beta, c, type_c, ld_c, 0, 1,
                                      compute, algorithm);
}

/* Products, batched products and matrix-vector products in one type: float (S) and double (D). */
#define IN_ONE_TYPE(LETTER, NUMBER, TYPE, COMPUTE)                                                 \
    cublasStatus_t cublas##LETTER##gemmStridedBatched(                                             \
        cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t transpose_b,       \
        int m, int n, int k, const NUMBER *alpha, const NUMBER *a, int ld_a, long long stride_a,   \
        const NUMBER *b, int ld_b, long long stride_b, const NUMBER *beta, NUMBER *c, int ld_c,    \
        long long stride_c, int batch)                                                             \
    {                                                                                              \
        product_work product = {                                                                   \
            .m = m, .n = n, .k = k, .batch = batch,                                                \
            .transpose_a = transpose_a, .transpose_b = transpose_b,                                \
            .alpha = alpha, .beta = beta, .type_scale = TYPE, .compute = COMPUTE,                  \
            .a = a, .type_a = TYPE, .ld_a = ld_a, .stride_a = stride_a,                            \
            .b = b, .type_b = TYPE, .ld_b = ld_b, .stride_b = stride_b,                            \
            .d = c, .type_d = TYPE, .ld_d = ld_c, .stride_d = stride_c,                            \
        };                                                                                         \
        const char *name = batch == 1 ? "cublas" #LETTER "gemm" : "cublas" #LETTER                 \
                                                                  "gemmStridedBatched";            \
        return submit(handle, name, product);                                                      \
    }                                                                                              \
    cublasStatus_t cublas##LETTER##gemm_v2(                                                        \
        cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t transpose_b,       \
        int m, int n, int k, const NUMBER *alpha, const NUMBER *a, int ld_a, const NUMBER *b,      \
        int ld_b, const NUMBER *beta, NUMBER *c, int ld_c)                                         \
    {                                                                                              \
        return cublas##LETTER##gemmStridedBatched(handle, transpose_a, transpose_b, m, n, k,       \
                                                  alpha, a, ld_a, 0, b, ld_b, 0, beta, c, ld_c, 0, \
                                                  1);                                              \
    }                                                                                              \
    cublasStatus_t cublas##LETTER##gemmBatched(                                                    \
        cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t transpose_b,       \
        int m, int n, int k, const NUMBER *alpha, const NUMBER *const a[], int ld_a,               \
        const NUMBER *const b[], int ld_b, const NUMBER *beta, NUMBER *const c[], int ld_c,        \
        int batch)                                                                                 \
    {                                                                                              \
        product_work product = {                                                                   \
            .m = m, .n = n, .k = k, .batch = batch, .pointer_arrays = true,                        \
            .transpose_a = transpose_a, .transpose_b = transpose_b,                                \
            .alpha = alpha, .beta = beta, .type_scale = TYPE, .compute = COMPUTE,                  \
            .a = a, .type_a = TYPE, .ld_a = ld_a,                                                  \
            .b = b, .type_b = TYPE, .ld_b = ld_b,                                                  \
            .d = (void *)c, .type_d = TYPE, .ld_d = ld_c,                                          \
        };                                                                                         \
        return submit(handle, "cublas" #LETTER "gemmBatched", product);                            \
    }                                                                                              \
    cublasStatus_t cublas##LETTER##gemv_v2(cublasHandle_t handle, cublasOperation_t transpose,     \
                                           int m, int n, const NUMBER *alpha, const NUMBER *a,     \
                                           int ld_a, const NUMBER *x, int step_x,                  \
                                           const NUMBER *beta, NUMBER *y, int step_y)              \
    {                                                                                              \
        /* A vector is a row of a matrix whose leading dimension is the vector's step. */          \
        bool plain = transpose == CUBLAS_OP_N;                                                     \
        product_work product = {                                                                   \
            .m = 1, .n = plain ? m : n, .k = plain ? n : m, .batch = 1,                            \
            .transpose_a = CUBLAS_OP_N, .transpose_b = plain ? CUBLAS_OP_T : CUBLAS_OP_N,          \
            .alpha = alpha, .beta = beta, .type_scale = TYPE, .compute = COMPUTE,                  \
            .a = x, .type_a = TYPE, .ld_a = step_x,                                                \
            .b = a, .type_b = TYPE, .ld_b = ld_a,                                                  \
            .d = y, .type_d = TYPE, .ld_d = step_y,                                                \
        };                                                                                         \
        return submit(handle, "cublas" #LETTER "gemv", product);                                   \
    }

IN_ONE_TYPE(S, float, CUDA_R_32F, CUBLAS_COMPUTE_32F)
IN_ONE_TYPE(D, double, CUDA_R_64F, CUBLAS_COMPUTE_64F)

/* A dot product is a row times a column. The result goes to device memory. */
static cublasStatus_t dot(cublasHandle_t handle, int length, const void *x, cudaDataType type_x,
                          int step_x, const void *y, cudaDataType type_y, int step_y, void *result,
                          cudaDataType type, cublasComputeType_t compute)
{
    static const double one_64 = 1, zero_64 = 0;
    static const float one_32 = 1, zero_32 = 0;
    bool wide = scale_type(compute) == CUDA_R_64F;
    if (handle->pointer_mode != CUBLAS_POINTER_MODE_DEVICE) {
        rehearsal_unknown("dot product that the host waits for");
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    product_work product = {
        .m = 1, .n = 1, .k = length, .batch = 1,
        .transpose_a = CUBLAS_OP_N, .transpose_b = CUBLAS_OP_T,
        .alpha = wide ? (const void *)&one_64 : &one_32,
        .beta = wide ? (const void *)&zero_64 : &zero_32,
        .type_scale = scale_type(compute), .compute = compute,
        .a = x, .type_a = type_x, .ld_a = step_x,
        .b = y, .type_b = type_y, .ld_b = step_y,
        .d = result, .type_d = type, .ld_d = 1,
    };
    return submit(handle, "cublasDot", product);
}

cublasStatus_t cublasSdot_v2(cublasHandle_t handle, int length, const float *x, int step_x,
                             const float *y, int step_y, float *result)
{
    return dot(handle, length, x, CUDA_R_32F, step_x, y, CUDA_R_32F, step_y, result, CUDA_R_32F,
               CUBLAS_COMPUTE_32F);
}

cublasStatus_t cublasDdot_v2(cublasHandle_t handle, int length, const double *x, int step_x,
                             const double *y, int step_y, double *result)
{
    return dot(handle, length, x, CUDA_R_64F, step_x, y, CUDA_R_64F, step_y, result, CUDA_R_64F,
               CUBLAS_COMPUTE_64F);
}

cublasStatus_t cublasDotEx(cublasHandle_t handle, int length, const void *x, cudaDataType type_x,
                           int step_x, const void *y, cudaDataType type_y, int step_y,
                           void *result, cudaDataType type, cudaDataType compute)
{
    return dot(handle, length, x, type_x, step_x, y, type_y, step_y, result, type,
               compute == CUDA_R_64F ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F);
}
