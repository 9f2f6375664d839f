// Layer normalisation: y = xhat scale + shift, xhat = (x - mean) r, r = 1 / sqrt(variance +
// 1e-5), the variance divided by the width. Backward, with g = dy scale:
// dx = r (g - mean(g) - xhat mean(g xhat)), dscale += dy xhat, dshift += dy.
//
// Ba et al. 2016, arXiv:1607.06450.

// A warp for each row; stats = [mean, r].
template <class Y>
__device__ inline void layer_norm(
    Y* y, float* stats, const float* x, const float* scale, const float* shift, i64 rows,
    int width
) {
    i64 row = WARP;
    if (row >= rows) return;
    const float* own = x + row * width;
    float sum = 0;
    for (int c = LANE; c < width; c += 32) sum += own[c];
    float mean = warp_sum(sum) / width;
    float squares = 0;
    for (int c = LANE; c < width; c += 32) squares += (own[c] - mean) * (own[c] - mean);
    float r = 1.0f / sqrtf(warp_sum(squares) / width + 1e-5f);
    for (int c = LANE; c < width; c += 32) {
        store(y, row * width + c, (own[c] - mean) * r * scale[c] + shift[c]);
    }
    if (LANE == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = r;
    }
}

extern "C" __global__ void layer_norm_f(
    float* y, float* stats, const float* x, const float* scale, const float* shift, i64 rows,
    int width
) {
    layer_norm(y, stats, x, scale, shift, rows, width);
}

extern "C" __global__ void layer_norm_h(
    bf16* y, float* stats, const float* x, const float* scale, const float* shift, i64 rows,
    int width
) {
    layer_norm(y, stats, x, scale, shift, rows, width);
}

// dx, or that added; a warp for each row.
template <class X, class Y>
__device__ inline void layer_norm_input(
    X* dx, const Y* dy, const float* x, const float* stats, const float* scale, i64 rows,
    int width, int add
) {
    i64 row = WARP;
    if (row >= rows) return;
    i64 first = row * width;
    float mean = stats[2 * row], r = stats[2 * row + 1];
    float sum = 0, along = 0;
    for (int c = LANE; c < width; c += 32) {
        float g = load(dy, first + c) * scale[c];
        sum += g;
        along += g * ((x[first + c] - mean) * r);
    }
    sum = warp_sum(sum) / width;
    along = warp_sum(along) / width;
    for (int c = LANE; c < width; c += 32) {
        float g = load(dy, first + c) * scale[c];
        float value = r * (g - sum - (x[first + c] - mean) * r * along);
        store(dx, first + c, add ? load(dx, first + c) + value : value);
    }
}

#define LAYER_NORM_INPUT(name, X, Y)                                                            \
    extern "C" __global__ void name(                                                           \
        X* dx, const Y* dy, const float* x, const float* stats, const float* scale, i64 rows,  \
        int width, int add                                                                     \
    ) {                                                                                        \
        layer_norm_input(dx, dy, x, stats, scale, rows, width, add);                           \
    }
// Of dx and dy, in this order.
LAYER_NORM_INPUT(layer_norm_input_ff, float, float)
LAYER_NORM_INPUT(layer_norm_input_fh, float, bf16)
LAYER_NORM_INPUT(layer_norm_input_hf, bf16, float)

// Sums of dy xhat and of dy over a piece of the rows: partial[piece, 0 and 1, c].
template <class Y>
__device__ inline void layer_norm_sums(
    float* partial, const Y* dy, const float* x, const float* stats, i64 rows, i64 piece,
    int width
) {
    int c = COLUMN;
    if (c >= width) return;
    i64 first = ROW * piece, end = first + piece < rows ? first + piece : rows;
    float along = 0, sum = 0;
    for (i64 row = first; row < end; row++) {
        float d = load(dy, row * width + c);
        along += d * ((x[row * width + c] - stats[2 * row]) * stats[2 * row + 1]);
        sum += d;
    }
    partial[2 * ROW * width + c] = along;
    partial[(2 * ROW + 1) * width + c] = sum;
}

extern "C" __global__ void layer_norm_sums_f(
    float* partial, const float* dy, const float* x, const float* stats, i64 rows, i64 piece,
    int width
) {
    layer_norm_sums(partial, dy, x, stats, rows, piece, width);
}

extern "C" __global__ void layer_norm_sums_h(
    float* partial, const bf16* dy, const float* x, const float* stats, i64 rows, i64 piece,
    int width
) {
    layer_norm_sums(partial, dy, x, stats, rows, piece, width);
}
