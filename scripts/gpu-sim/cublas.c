// cuBLAS (libcublas) on the CPU: column-major strided batches of products, summed in double.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef long long stride_t;

// Status codes, cudaDataType and cublasComputeType_t of the CUDA headers.
enum { SUCCESS = 0, ALLOC_FAILED = 3, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum { COMPUTE_16F = 64, COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77, COMPUTE_64F = 70 };

int gpu_sim_inside(const char *what, uint64_t start, size_t size);

struct matrix {
    char *data;
    int type;
    int transposed;
    int leading;
    stride_t stride;
};

static size_t size_of(int type) {
    return type == F64 ? 8 : type == F32 ? 4 : 2;
}

static int known(int type) {
    return type == F32 || type == F64 || type == F16 || type == BF16;
}

static double load(const char *data, int type, size_t at) {
    const char *from = data + at * size_of(type);
    float single;
    double real;
    _Float16 half;
    uint16_t bits;
    uint32_t wide;
    switch (type) {
    case F64:
        memcpy(&real, from, sizeof real);
        return real;
    case F32:
        memcpy(&single, from, sizeof single);
        return single;
    case F16:
        memcpy(&half, from, sizeof half);
        return (double)half;
    default:
        memcpy(&bits, from, sizeof bits);
        wide = (uint32_t)bits << 16;
        memcpy(&single, &wide, sizeof single);
        return single;
    }
}

static void store(char *data, int type, size_t at, double value) {
    char *to = data + at * size_of(type);
    float single = (float)value;
    _Float16 half = (_Float16)value;
    uint16_t bits;
    uint32_t wide;
    switch (type) {
    case F64:
        memcpy(to, &value, sizeof value);
        return;
    case F32:
        memcpy(to, &single, sizeof single);
        return;
    case F16:
        memcpy(to, &half, sizeof half);
        return;
    default: // rounded to even; NaN stays NaN
        memcpy(&wide, &single, sizeof wide);
        bits = single != single ? 0x7fff : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
        memcpy(to, &bits, sizeof bits);
    }
}

// Element (row, column) of op(matrix), column-major.
static size_t at(const struct matrix *m, int row, int column) {
    return m->transposed ? (size_t)row * m->leading + column : (size_t)column * m->leading + row;
}

// Whether a batch of rows x columns matrices lies in device memory.
static int inside(const char *what, const struct matrix *m, int rows, int columns, int batch) {
    if (rows == 0 || columns == 0 || batch == 0)
        return 1;
    if (!known(m->type) || m->stride < 0 || m->leading < (m->transposed ? columns : rows))
        return 0;
    size_t last = (size_t)(batch - 1) * m->stride + at(m, rows - 1, columns - 1);
    return gpu_sim_inside(what, (uint64_t)m->data, (last + 1) * size_of(m->type));
}

static int gemm(int m, int n, int k, double alpha, struct matrix a, struct matrix b, double beta,
                struct matrix c, int batch) {
    if (m < 0 || n < 0 || k < 0 || batch < 0)
        return INVALID_VALUE;
    if (!inside("gemm, A", &a, m, k, batch) || !inside("gemm, B", &b, k, n, batch) ||
        !inside("gemm, C", &c, m, n, batch))
        return INVALID_VALUE;
    double *rows = malloc(sizeof *rows * (size_t)m * k + 1);
    double *column = malloc(sizeof *column * (size_t)k + 1);
    if (!rows || !column)
        return ALLOC_FAILED;
    for (int i = 0; i < batch; i++) {
        const char *a_data = a.data + i * a.stride * size_of(a.type);
        const char *b_data = b.data + i * b.stride * size_of(b.type);
        char *c_data = c.data + i * c.stride * size_of(c.type);
        for (int row = 0; row < m; row++)
            for (int l = 0; l < k; l++)
                rows[(size_t)row * k + l] = load(a_data, a.type, at(&a, row, l));
        for (int j = 0; j < n; j++) {
            for (int l = 0; l < k; l++)
                column[l] = load(b_data, b.type, at(&b, l, j));
            for (int row = 0; row < m; row++) {
                double sum = 0;
                for (int l = 0; l < k; l++)
                    sum += rows[(size_t)row * k + l] * column[l];
                double before = beta == 0 ? 0 : beta * load(c_data, c.type, at(&c, row, j));
                store(c_data, c.type, at(&c, row, j), alpha * sum + before);
            }
        }
    }
    free(rows);
    free(column);
    return SUCCESS;
}

int cublasCreate_v2(void **handle) {
    return (*handle = malloc(1)) ? SUCCESS : ALLOC_FAILED;
}

int cublasDestroy_v2(void *handle) {
    free(handle);
    return SUCCESS;
}

int cublasSetStream_v2(void *handle, void *stream) {
    return SUCCESS;
}

int cublasSetWorkspace_v2(void *handle, void *workspace, size_t size) {
    return SUCCESS;
}

int cublasSetMathMode(void *handle, int mode) {
    return SUCCESS;
}

int cublasSgemmStridedBatched(void *handle, int transpose_a, int transpose_b, int m, int n, int k,
                              const float *alpha, char *a, int lda, stride_t stride_a, char *b,
                              int ldb, stride_t stride_b, const float *beta, char *c, int ldc,
                              stride_t stride_c, int batch) {
    struct matrix left = {a, F32, transpose_a, lda, stride_a};
    struct matrix right = {b, F32, transpose_b, ldb, stride_b};
    struct matrix out = {c, F32, 0, ldc, stride_c};
    return gemm(m, n, k, *alpha, left, right, *beta, out, batch);
}

// alpha and beta have the type of the computation.
static double scalar(const void *value, int compute) {
    int type = compute == COMPUTE_16F ? F16 : compute == COMPUTE_64F ? F64 : F32;
    return load(value, type, 0);
}

int cublasGemmStridedBatchedEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k,
                               const void *alpha, char *a, int type_a, int lda, stride_t stride_a,
                               char *b, int type_b, int ldb, stride_t stride_b, const void *beta,
                               char *c, int type_c, int ldc, stride_t stride_c, int batch,
                               int compute, int algorithm) {
    if (compute < COMPUTE_16F || compute > COMPUTE_32F_FAST_TF32 || !known(type_a) ||
        !known(type_b) || !known(type_c))
        return NOT_SUPPORTED;
    struct matrix left = {a, type_a, transpose_a, lda, stride_a};
    struct matrix right = {b, type_b, transpose_b, ldb, stride_b};
    struct matrix out = {c, type_c, 0, ldc, stride_c};
    return gemm(m, n, k, scalar(alpha, compute), left, right, scalar(beta, compute), out, batch);
}
