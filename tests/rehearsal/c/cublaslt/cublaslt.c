/* cuBLASLt: the descriptors and layouts that torch sets, and the product that they describe. */
#include "stand_in.h"
#define __CUDA_FP16_H__ /* see cublas.c */
#define __CUDA_BF16_H__
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int compute, type_scale, transpose_a, transpose_b, epilogue, type_bias, pointer_mode;
    const void *bias;
    void *aux;
    int64_t ld_aux;
} description;

typedef struct {
    int type, order, batch;
    int64_t rows, columns, ld, stride;
} layout;

static int unknown;

size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = (cublasLtHandle_t)&unknown;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    (void)handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    description *d = calloc(1, sizeof *d);
    *d = (description){.compute = compute, .type_scale = scale, .type_bias = -1,
                       .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
    *made = (cublasLtMatmulDesc_t)d;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t put(void *field, size_t field_bytes, const void *value, size_t bytes)
{
    if (bytes != field_bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
#define PUT(field) put(&(field), sizeof(field), value, bytes)

static cublasStatus_t refuse(const char *what, int attribute)
{
    rehearsal_refuse(cudaErrorNotSupported, "the stand-in has no %s attribute %d", what,
                     attribute);
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    description *d = (description *)handle;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return PUT(d->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return PUT(d->type_scale);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return PUT(d->pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA: return PUT(d->transpose_a);
    case CUBLASLT_MATMUL_DESC_TRANSB: return PUT(d->transpose_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return PUT(d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return PUT(d->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return PUT(d->type_bias);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return PUT(d->aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return PUT(d->ld_aux);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET: return CUBLAS_STATUS_SUCCESS;
    default: return refuse("matmul", attribute);
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld)
{
    layout *l = calloc(1, sizeof *l);
    *l = (layout){.type = type, .order = CUBLASLT_ORDER_COL, .batch = 1, .rows = (int64_t)rows,
                  .columns = (int64_t)columns, .ld = ld};
    *made = (cublasLtMatrixLayout_t)l;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t handle,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes)
{
    layout *l = (layout *)handle;
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return PUT(l->batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return PUT(l->stride);
    default: return refuse("layout", attribute);
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made)
{
    *made = (cublasLtMatmulPreference_t)&unknown;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t handle)
{
    (void)handle;
    return CUBLAS_STATUS_SUCCESS;
}

/* Workspace and alignment only decide which algorithm is fast, so they are ignored here. */
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    (void)handle, (void)attribute, (void)value, (void)bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t described, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int asked, cublasLtMatmulHeuristicResult_t results[],
    int *found)
{
    (void)handle, (void)described, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *found = asked > 0;
    if (*found) {
        memset(results, 0, sizeof *results);
        results[0].state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t described,
                              const void *alpha, const void *a, cublasLtMatrixLayout_t layout_a,
                              const void *b, cublasLtMatrixLayout_t layout_b, const void *beta,
                              const void *c, cublasLtMatrixLayout_t layout_c, void *d,
                              cublasLtMatrixLayout_t layout_d,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t on)
{
    (void)handle, (void)algorithm, (void)workspace, (void)workspace_bytes;
    const description *how = (const description *)described;
    const layout *la = (const layout *)layout_a, *lb = (const layout *)layout_b;
    const layout *lc = (const layout *)layout_c, *ld = (const layout *)layout_d;
    product_work product = {
        .m = ld->rows, .n = ld->columns,
        .k = how->transpose_a == CUBLAS_OP_N ? la->columns : la->rows,
        .batch = ld->batch,
        .transpose_a = how->transpose_a, .transpose_b = how->transpose_b,
        .alpha = alpha, .beta = beta, .type_scale = how->type_scale, .compute = how->compute,
        .device_scalars = how->pointer_mode != CUBLASLT_POINTER_MODE_HOST,
        .a = a, .type_a = la->type, .ld_a = la->ld, .stride_a = la->stride,
        .b = b, .type_b = lb->type, .ld_b = lb->ld, .stride_b = lb->stride,
        .c = c, .type_c = lc->type, .ld_c = lc->ld, .stride_c = lc->stride,
        .d = d, .type_d = ld->type, .ld_d = ld->ld, .stride_d = ld->stride,
        .epilogue = how->epilogue, .bias = how->bias,
        .type_bias = how->type_bias < 0 ? ld->type : how->type_bias,
        .aux = how->aux, .ld_aux = how->ld_aux,
    };
    work what = {.kind = PRODUCT, .name = "cublasLtMatmul", .product = product};
    return rehearsal_submit(&what, on) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
