// Tokens, columns, GELU: one value for each thread.

// to[u N + n, c] = from[n, table[u, c]]; a block for each row of `to`.
extern "C" __global__ void gather(
    float* to, const float* from, const u32* table, int samples, i64 from_width, int width
) {
    int c = COLUMN;
    if (c >= width) return;
    i64 u = ROW / samples, n = ROW % samples;
    to[ROW * width + c] = from[n * from_width + table[u * width + c]];
}

// to[n, table[u, c]] += from[u N + n, c]. No place is in the table twice.
extern "C" __global__ void scatter_add(
    float* to, const float* from, const u32* table, int samples, i64 to_width, int width
) {
    int c = COLUMN;
    if (c >= width) return;
    i64 u = ROW / samples, n = ROW % samples;
    to[n * to_width + table[u * width + c]] += from[ROW * width + c];
}

// to[n, c] = from[n, column + c].
extern "C" __global__ void copy_columns(
    float* to, const float* from, i64 from_width, i64 column, int width
) {
    int c = COLUMN;
    if (c < width) to[ROW * width + c] = from[ROW * from_width + column + c];
}

// The input of the network, [noised * signal | start | embedded scalars]. Where `timestep` is
// given, it replaces the first embedding, and there is one signal for all samples.
extern "C" __global__ void assemble(
    float* input, const float* noised, const float* start, const float* embedded,
    const float* signals, const float* timestep, int timestep_width, i64 parameters,
    i64 embedding, i64 width
) {
    i64 c = COLUMN, n = ROW;
    if (c >= width) return;
    float value;
    if (c < parameters) {
        value = noised[n * parameters + c] * signals[timestep ? 0 : n];
    } else if (c < 2 * parameters) {
        value = start[n * parameters + c - parameters];
    } else {
        i64 e = c - 2 * parameters;
        value = timestep && e < timestep_width ? timestep[e] : embedded[n * embedding + e];
    }
    input[n * width + c] = value;
}

// gelu(u) = u Phi(u) of u = y + bias, and its slope Phi(u) + u phi(u), with distribution
// function and density of the standard normal distribution. Exact, not the approximation by
// a hyperbolic tangent that cuBLASLt has.
template <class Y>
__device__ inline void gelu(Y* y, Y* slope, const float* bias, int width) {
    int c = COLUMN;
    if (c >= width) return;
    i64 i = ROW * width + c;
    float u = load(y, i) + (bias ? bias[c] : 0.0f);
    float cdf = 0.5f * erfcf(-0.70710678118654752f * u);
    store(y, i, u * cdf);
    if (slope) {
        float pdf = 0.39894228040143268f * expf(-0.5f * u * u);
        store(slope, i, cdf + u * pdf);
    }
}

extern "C" __global__ void gelu_f(float* y, float* slope, const float* bias, int width) {
    gelu(y, slope, bias, width);
}

extern "C" __global__ void gelu_h(bf16* y, bf16* slope, const float* bias, int width) {
    gelu(y, slope, bias, width);
}

// dy *= slope.
template <class Y>
__device__ inline void multiply(Y* dy, const Y* slope, i64 count) {
    i64 i = INDEX;
    if (i < count) store(dy, i, load(dy, i) * load(slope, i));
}

extern "C" __global__ void multiply_f(float* dy, const float* slope, i64 count) {
    multiply(dy, slope, count);
}

extern "C" __global__ void multiply_h(bf16* dy, const bf16* slope, i64 count) {
    multiply(dy, slope, count);
}

// The same values in another width.
extern "C" __global__ void narrow(bf16* to, const float* from, i64 count) {
    i64 i = INDEX;
    if (i < count) store(to, i, from[i]);
}

extern "C" __global__ void widen(float* to, const bf16* from, i64 count) {
    i64 i = INDEX;
    if (i < count) to[i] = load(from, i);
}

// x[t N + n, c] += embedding[position[t], c].
extern "C" __global__ void add_positions(
    float* x, const float* embedding, const u32* positions, int samples, int width
) {
    int c = COLUMN;
    if (c >= width) return;
    x[ROW * width + c] += embedding[(i64)positions[ROW / samples] * width + c];
}

// x[t N + n, c] += from[n, c].
extern "C" __global__ void add_to_tokens(float* x, const float* from, int samples, int width) {
    int c = COLUMN;
    if (c < width) x[ROW * width + c] += from[(ROW % samples) * width + c];
}

// to[n, c] = sum over t of x[t N + n, c]; a block for each sample.
extern "C" __global__ void sum_tokens(
    float* to, const float* x, int tokens, int samples, int width
) {
    int c = COLUMN;
    if (c >= width) return;
    float sum = 0;
    for (int t = 0; t < tokens; t++) sum += x[((i64)t * samples + ROW) * width + c];
    to[ROW * width + c] = sum;
}
