// Sums over rows in two steps, so that many blocks take part and the order is always the
// same: sums of pieces, then the sum of those.

// partial[piece, c] = sum of the rows of a piece; a block for each piece.
template <class X>
__device__ inline void column_sums(float* partial, const X* x, i64 rows, i64 piece, int width) {
    int c = COLUMN;
    if (c >= width) return;
    i64 first = ROW * piece, end = first + piece < rows ? first + piece : rows;
    float sum = 0;
    for (i64 row = first; row < end; row++) sum += load(x, row * width + c);
    partial[ROW * width + c] = sum;
}

extern "C" __global__ void column_sums_f(
    float* partial, const float* x, i64 rows, i64 piece, int width
) {
    column_sums(partial, x, rows, piece, width);
}

extern "C" __global__ void column_sums_h(
    float* partial, const bf16* x, i64 rows, i64 piece, int width
) {
    column_sums(partial, x, rows, piece, width);
}

// sum[c] += partial[0, c] + partial[1, c] + ..; rows of `partial` are `stride` long.
extern "C" __global__ void add_partials(
    float* sum, const float* partial, int pieces, i64 stride, int width
) {
    int c = COLUMN;
    if (c >= width) return;
    float total = 0;
    for (int i = 0; i < pieces; i++) total += partial[i * stride + c];
    sum[c] += total;
}

// sum[p, c] += partial[t, c] of all tokens t at position p: those from first[p] on. A block
// for each position.
extern "C" __global__ void add_by_position(
    float* sum, const float* partial, const u32* first, int width
) {
    int c = COLUMN;
    if (c >= width) return;
    float total = 0;
    for (u32 t = first[ROW]; t < first[ROW + 1]; t++) total += partial[(i64)t * width + c];
    sum[ROW * width + c] += total;
}

// Sum over c of w (output - target)^2 for one sample, w = entry[c] sample[n], and the
// gradient 2 scale w (output - target) in place of the output. A block for each sample.
extern "C" __global__ void squared_error(
    double* sums, float* output, const float* target, const float* entry, const float* sample,
    double scale, i64 width
) {
    __shared__ double partial[32];
    i64 first = ROW * width;
    double weight = sample ? (double)sample[ROW] : 1.0;
    float slope = (float)(2.0 * scale * weight);
    float sum = 0;
    for (i64 c = threadIdx.x; c < width; c += blockDim.x) {
        float d = output[first + c] - target[first + c];
        float w = entry ? entry[c] : 1.0f;
        sum += w * d * d;
        output[first + c] = slope * w * d;
    }
    double total = block_sum((double)sum, partial);
    if (threadIdx.x == 0) sums[ROW] = weight * total;
}

// sums[block] = the sum of squares of one piece of `piece` values.
extern "C" __global__ void squares(double* sums, const float* values, i64 count, i64 piece) {
    __shared__ double partial[32];
    i64 first = ROW * piece, end = first + piece < count ? first + piece : count;
    float sum = 0;
    for (i64 i = first + threadIdx.x; i < end; i += blockDim.x) sum += values[i] * values[i];
    double total = block_sum((double)sum, partial);
    if (threadIdx.x == 0) sums[ROW] = total;
}

// figures = [loss, norm of the gradient, what clips it, whether the training has ended in
// values that are not finite]; one block. Once it has ended nothing changes any more.
extern "C" __global__ void finish_step(
    double* figures, const double* losses, i64 samples, double loss_scale,
    const double* squares, i64 pieces, double limit
) {
    __shared__ double partial[32];
    double loss = 0, norm = 0;
    for (i64 i = threadIdx.x; i < samples; i += blockDim.x) loss += losses[i];
    for (i64 i = threadIdx.x; i < pieces; i += blockDim.x) norm += squares[i];
    loss = block_sum(loss, partial) * loss_scale;
    norm = sqrt(block_sum(norm, partial));
    if (threadIdx.x != 0 || figures[3] != 0.0) return;
    double scale = limit / (norm + 1e-6);
    figures[0] = loss;
    figures[1] = norm;
    figures[2] = scale < 1.0 ? scale : 1.0;
    // The difference of an infinity or of what is no number with itself is not zero.
    figures[3] = loss - loss == 0.0 && norm - norm == 0.0 ? 0.0 : 1.0;
}
