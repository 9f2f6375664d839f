// Products of matrices that cuBLASLt cannot compute: out = a b + add + bias, with
// a[i, k] at a + i * a_row + k * a_column, and b[k, j] at b + k * b_row + j * b_column. A block
// of 256 threads has 32 by 32 values of the result.

#define SIDE 32
#define SIDE_PITCH 33

template <class T, class O>
__device__ inline void product(
    O* out, const T* a, i64 a_row, i64 a_column, const T* b, i64 b_row, i64 b_column, const O* add,
    const O* bias, i64 m, i64 n, i64 inner, float* left, float* right
) {
    int lane = threadIdx.x % SIDE, group = threadIdx.x / SIDE;
    i64 i0 = (i64)blockIdx.x * SIDE, j0 = (i64)blockIdx.y * SIDE;
    float sums[4] = {0, 0, 0, 0};
    for (i64 k0 = 0; k0 < inner; k0 += SIDE) {
        __syncthreads();
        for (int r = group; r < SIDE; r += 8) {
            bool inside = i0 + r < m && k0 + lane < inner;
            left[r * SIDE_PITCH + lane] =
                inside ? load(a, (i0 + r) * a_row + (k0 + lane) * a_column) : 0;
            inside = k0 + r < inner && j0 + lane < n;
            right[r * SIDE_PITCH + lane] =
                inside ? load(b, (k0 + r) * b_row + (j0 + lane) * b_column) : 0;
        }
        __syncthreads();
        for (int k = 0; k < SIDE; k++) {
            float value = right[k * SIDE_PITCH + lane];
            for (int r = 0; r < 4; r++) sums[r] += left[(group + 8 * r) * SIDE_PITCH + k] * value;
        }
    }
    for (int r = 0; r < 4; r++) {
        i64 i = i0 + group + 8 * r, j = j0 + lane;
        if (i >= m || j >= n) continue;
        float value = sums[r];
        if (add) value += load(add, i * n + j);
        if (bias) value += load(bias, j);
        store(out, i * n + j, value);
    }
}

#define PRODUCT(name, T, O)                                                                      \
    extern "C" __global__ void name(                                                            \
        O* out, const T* a, i64 a_row, i64 a_column, const T* b, i64 b_row, i64 b_column,       \
        const O* add, const O* bias, i64 m, i64 n, i64 inner                                    \
    ) {                                                                                         \
        __shared__ float left[SIDE * SIDE_PITCH], right[SIDE * SIDE_PITCH];                      \
        product(                                                                                \
            out, a, a_row, a_column, b, b_row, b_column, add, bias, m, n, inner, left, right    \
        );                                                                                      \
    }

// Of the factors and of the result.
PRODUCT(product_ff, float, float)
PRODUCT(product_hf, bf16, float)
PRODUCT(product_hh, bf16, bf16)
