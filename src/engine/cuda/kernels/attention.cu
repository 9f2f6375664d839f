// Attention for every sample and head: S = Q K^T / sqrt(head size), P = softmax(S) row by
// row, O = P V. Backward: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)),
// dQ = dS K / sqrt(head size), dK = dS^T Q / sqrt(head size).
//
// A block of 128 threads has one head of one sample and a tile of 16 rows of the result: of
// queries forward and for dQ, of keys for dK and dV. Rows of tokens are short, so scores and
// probabilities are kept, [samples, heads, queries, keys], with rows padded to `keys` values;
// what a block has just written it reads back from the cache. All products go through tiles in
// shared memory, of 32 by 32 values at a time, so any size of head and number of tokens fits.
//
// Vaswani et al. 2017, arXiv:1706.03762.

#define TILE 16
#define STEP 32
// A row of a tile begins at a multiple of four values, and eight rows in as many banks.
#define PITCH 36

// Four values that are read at once.
struct alignas(16) Quad {
    float x, y, z, w;
};

__device__ inline Quad quad(const float* from) { return *(const Quad*)from; }

// Where a head of a sample lies: token t is at `first + t * stride`.
struct Rows {
    i64 first, stride;
};

// Keys, queries and values (parts 0, 1 and 2) in rows of 3 width values.
__device__ inline Rows part_of(int part, int sample, int head, int samples, int width, int size) {
    i64 row = 3 * (i64)width;
    return Rows{sample * row + (i64)part * width + head * size, samples * row};
}

__device__ inline Rows output_of(int sample, int head, int samples, int width, int size) {
    return Rows{(i64)sample * width + head * size, (i64)samples * width};
}

// out[i, j] = scale * sum over c of a[i, c] b[j, c], for the `count` rows of a tile.
template <class T>
__device__ inline void rows_times_rows(
    float* out, i64 out_stride, const T* a, Rows a_rows, int count, const T* b, Rows b_rows,
    int columns, int size, float scale, float* left, float* right
) {
    int lane = threadIdx.x % STEP, group = threadIdx.x / STEP;
    for (int j0 = 0; j0 < columns; j0 += STEP) {
        float sums[4] = {0, 0, 0, 0};
        for (int c0 = 0; c0 < size; c0 += STEP) {
            __syncthreads();
            int c = c0 + lane;
            for (int i = group; i < TILE; i += 4) {
                bool inside = i < count && c < size;
                left[i * PITCH + lane] = inside ? load(a, a_rows.first + i * a_rows.stride + c) : 0;
            }
            for (int j = group; j < STEP; j += 4) {
                bool inside = j0 + j < columns && c < size;
                right[j * PITCH + lane] =
                    inside ? load(b, b_rows.first + (j0 + j) * b_rows.stride + c) : 0;
            }
            __syncthreads();
            for (int k = 0; k < STEP; k += 4) {
                Quad v = quad(right + lane * PITCH + k);
                for (int r = 0; r < 4; r++) {
                    Quad l = quad(left + (group + 4 * r) * PITCH + k);
                    sums[r] += l.x * v.x;
                    sums[r] += l.y * v.y;
                    sums[r] += l.z * v.z;
                    sums[r] += l.w * v.w;
                }
            }
        }
        for (int r = 0; r < 4; r++) {
            int i = group + 4 * r;
            if (i < count && j0 + lane < columns) out[i * out_stride + j0 + lane] = sums[r] * scale;
        }
    }
}

// out[i, c] = scale * sum over j of weights[i * row + j * column] b[j, c].
template <class T>
__device__ inline void rows_times_columns(
    T* out, Rows out_rows, const float* weights, i64 row, i64 column, int count, const T* b,
    Rows b_rows, int inner, int size, float scale, float* left, float* right
) {
    int lane = threadIdx.x % STEP, group = threadIdx.x / STEP;
    for (int c0 = 0; c0 < size; c0 += STEP) {
        float sums[4] = {0, 0, 0, 0};
        int c = c0 + lane;
        for (int j0 = 0; j0 < inner; j0 += STEP) {
            __syncthreads();
            for (int i = group; i < TILE; i += 4) {
                bool inside = i < count && j0 + lane < inner;
                left[i * PITCH + lane] = inside ? weights[i * row + (j0 + lane) * column] : 0;
            }
            for (int j = group; j < STEP; j += 4) {
                bool inside = j0 + j < inner && c < size;
                right[j * PITCH + lane] =
                    inside ? load(b, b_rows.first + (j0 + j) * b_rows.stride + c) : 0;
            }
            __syncthreads();
            for (int k = 0; k < STEP; k += 4) {
                const float* v = right + k * PITCH + lane;
                for (int r = 0; r < 4; r++) {
                    Quad l = quad(left + (group + 4 * r) * PITCH + k);
                    sums[r] += l.x * v[0];
                    sums[r] += l.y * v[PITCH];
                    sums[r] += l.z * v[2 * PITCH];
                    sums[r] += l.w * v[3 * PITCH];
                }
            }
        }
        for (int r = 0; r < 4; r++) {
            int i = group + 4 * r;
            if (i < count && c < size) {
                store(out, out_rows.first + i * out_rows.stride + c, sums[r] * scale);
            }
        }
    }
}

// The rows of a tile that begins at `first`.
__device__ inline Rows from_row(Rows rows, int first) {
    return Rows{rows.first + first * rows.stride, rows.stride};
}

template <class T>
__device__ inline void attention(
    T* out, float* probabilities, const T* qkv, int samples, int tokens, int queries, int heads,
    int width, int keys, float scale, float* left, float* right
) {
    int sample = blockIdx.x / heads, head = blockIdx.x % heads, size = width / heads;
    int first = blockIdx.y * TILE, count = queries - first < TILE ? queries - first : TILE;
    float* own = probabilities + ((i64)blockIdx.x * queries + first) * keys;
    Rows key = part_of(0, sample, head, samples, width, size);
    Rows query = from_row(part_of(1, sample, head, samples, width, size), first);
    Rows value = part_of(2, sample, head, samples, width, size);
    Rows to = from_row(output_of(sample, head, samples, width, size), first);
    rows_times_rows(own, keys, qkv, query, count, qkv, key, tokens, size, scale, left, right);
    __syncthreads();
    for (int i = threadIdx.x / 32; i < count; i += blockDim.x / 32) {
        float* row = own + (i64)i * keys;
        float largest = -3.4e38f;
        for (int j = LANE; j < tokens; j += 32) largest = row[j] > largest ? row[j] : largest;
        largest = warp_max(largest);
        float sum = 0;
        for (int j = LANE; j < tokens; j += 32) {
            float e = expf(row[j] - largest);
            row[j] = e;
            sum += e;
        }
        float inverse = 1.0f / warp_sum(sum);
        for (int j = LANE; j < keys; j += 32) row[j] = j < tokens ? row[j] * inverse : 0.0f;
    }
    __syncthreads();
    rows_times_columns(
        out, to, own, keys, 1, count, qkv, value, tokens, size, 1.0f, left, right
    );
}

// dS, and dQ of the tokens that ask.
template <class T>
__device__ inline void attention_queries(
    T* dqkv, float* dscores, const T* dout, const float* probabilities, const T* qkv, int samples,
    int tokens, int queries, int heads, int width, int keys, float scale, float* left, float* right
) {
    int sample = blockIdx.x / heads, head = blockIdx.x % heads, size = width / heads;
    int first = blockIdx.y * TILE, count = queries - first < TILE ? queries - first : TILE;
    i64 start = ((i64)blockIdx.x * queries + first) * keys;
    const float* p = probabilities + start;
    float* ds = dscores + start;
    Rows key = part_of(0, sample, head, samples, width, size);
    Rows query = from_row(part_of(1, sample, head, samples, width, size), first);
    Rows value = part_of(2, sample, head, samples, width, size);
    Rows from = from_row(output_of(sample, head, samples, width, size), first);
    rows_times_rows(ds, keys, dout, from, count, qkv, value, tokens, size, 1.0f, left, right);
    __syncthreads();
    for (int i = threadIdx.x / 32; i < count; i += blockDim.x / 32) {
        i64 row = (i64)i * keys;
        float sum = 0;
        for (int j = LANE; j < tokens; j += 32) sum += p[row + j] * ds[row + j];
        sum = warp_sum(sum);
        for (int j = LANE; j < tokens; j += 32) ds[row + j] = p[row + j] * (ds[row + j] - sum);
    }
    __syncthreads();
    rows_times_columns(
        dqkv, query, ds, keys, 1, count, qkv, key, tokens, size, scale, left, right
    );
}

// dK and dV, and zeros for the queries of tokens that do not ask.
template <class T>
__device__ inline void attention_keys(
    T* dqkv, const float* dscores, const T* dout, const float* probabilities, const T* qkv,
    int samples, int tokens, int queries, int heads, int width, int keys, float scale, float* left,
    float* right
) {
    int sample = blockIdx.x / heads, head = blockIdx.x % heads, size = width / heads;
    int first = blockIdx.y * TILE, count = tokens - first < TILE ? tokens - first : TILE;
    i64 start = (i64)blockIdx.x * queries * keys + first;
    Rows key = from_row(part_of(0, sample, head, samples, width, size), first);
    Rows query = part_of(1, sample, head, samples, width, size);
    Rows value = from_row(part_of(2, sample, head, samples, width, size), first);
    Rows from = output_of(sample, head, samples, width, size);
    rows_times_columns(
        dqkv, key, dscores + start, 1, keys, count, qkv, query, queries, size, scale, left, right
    );
    rows_times_columns(
        dqkv, value, probabilities + start, 1, keys, count, dout, from, queries, size, 1.0f, left,
        right
    );
    for (int i = first < queries ? queries - first : 0; i < count; i++) {
        for (int c = threadIdx.x; c < size; c += blockDim.x) {
            store(dqkv, query.first + (first + i) * query.stride + c, 0.0f);
        }
    }
}

#define ATTENTION(T, forward, backward_queries, backward_keys)                                    \
    extern "C" __global__ void forward(                                                          \
        T* out, float* probabilities, const T* qkv, int samples, int tokens, int queries,        \
        int heads, int width, int keys, float scale                                              \
    ) {                                                                                          \
        __shared__ Quad tiles[(TILE + STEP) * PITCH / 4];                                         \
        float *left = &tiles[0].x, *right = left + TILE * PITCH;                                  \
        attention(                                                                               \
            out, probabilities, qkv, samples, tokens, queries, heads, width, keys, scale, left,  \
            right                                                                                \
        );                                                                                       \
    }                                                                                            \
    extern "C" __global__ void backward_queries(                                                 \
        T* dqkv, float* dscores, const T* dout, const float* probabilities, const T* qkv,        \
        int samples, int tokens, int queries, int heads, int width, int keys, float scale        \
    ) {                                                                                          \
        __shared__ Quad tiles[(TILE + STEP) * PITCH / 4];                                         \
        float *left = &tiles[0].x, *right = left + TILE * PITCH;                                  \
        attention_queries(                                                                       \
            dqkv, dscores, dout, probabilities, qkv, samples, tokens, queries, heads, width,     \
            keys, scale, left, right                                                             \
        );                                                                                       \
    }                                                                                            \
    extern "C" __global__ void backward_keys(                                                    \
        T* dqkv, const float* dscores, const T* dout, const float* probabilities, const T* qkv,  \
        int samples, int tokens, int queries, int heads, int width, int keys, float scale        \
    ) {                                                                                          \
        __shared__ Quad tiles[(TILE + STEP) * PITCH / 4];                                         \
        float *left = &tiles[0].x, *right = left + TILE * PITCH;                                  \
        attention_keys(                                                                          \
            dqkv, dscores, dout, probabilities, qkv, samples, tokens, queries, heads, width,     \
            keys, scale, left, right                                                             \
        );                                                                                       \
    }

ATTENTION(float, attention_f, attention_queries_f, attention_keys_f)
ATTENTION(bf16, attention_h, attention_queries_h, attention_keys_h)
