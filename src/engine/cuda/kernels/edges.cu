// Sums and products along the edges of a graph of units: derivatives of
// sum over u, v, c, r of edges[n, u, v, c] to[u N + n, r] from[v N + n, c, r].

// to[u N + n, r] = sum over v, c of edges[n, u, v, c] from[v N + n, c, r]; a block for each
// row of `to`.
extern "C" __global__ void edge_sum(
    float* to, const float* edges, const float* from, int samples, int units, int senders,
    int channels, int rank
) {
    int r = COLUMN;
    if (r >= rank) return;
    i64 u = ROW / samples, n = ROW % samples;
    const float* own = edges + (n * units + u) * senders * channels;
    float sum = 0;
    for (int v = 0; v < senders; v++) {
        const float* message = from + ((i64)v * samples + n) * channels * rank + r;
        for (int c = 0; c < channels; c++) {
            sum += own[v * channels + c] * message[(i64)c * rank];
        }
    }
    to[ROW * rank + r] = sum;
}

// from[v N + n, c, r] = sum over u of edges[n, u, v, c] to[u N + n, r]; a block for each row
// and channel of `from`.
extern "C" __global__ void edge_sum_transposed(
    float* from, const float* edges, const float* to, int samples, int units, int senders,
    int channels, int rank
) {
    int r = COLUMN;
    if (r >= rank) return;
    i64 c = ROW % channels, n = ROW / channels % samples, v = ROW / channels / samples;
    const float* own = edges + (n * units * senders + v) * channels + c;
    float sum = 0;
    for (int u = 0; u < units; u++) {
        sum += own[(i64)u * senders * channels] * to[((i64)u * samples + n) * rank + r];
    }
    from[ROW * rank + r] = sum;
}

// edges[n, u, v, c] = sum over r of to[u N + n, r] from[v N + n, c, r], or that added; a warp
// for each edge.
extern "C" __global__ void edge_product(
    float* edges, const float* to, const float* from, int samples, int units, int senders,
    int channels, int rank, int add
) {
    i64 i = WARP;
    if (i >= (i64)samples * units * senders * channels) return;
    i64 c = i % channels, v = i / channels % senders;
    i64 u = i / channels / senders % units, n = i / channels / senders / units;
    const float* receiver = to + (u * samples + n) * rank;
    const float* sender = from + ((v * samples + n) * channels + c) * rank;
    float sum = 0;
    for (int r = LANE; r < rank; r += 32) sum += receiver[r] * sender[r];
    sum = warp_sum(sum);
    if (LANE == 0) edges[i] = add ? edges[i] + sum : sum;
}

// out[n, u, v, c] += sum over s of gates[u N + n, s] from[n, u, v, s, c].
extern "C" __global__ void edge_gate(
    float* out, const float* gates, const float* from, int samples, int units, int senders,
    int channels, int parts
) {
    i64 i = INDEX;
    if (i >= (i64)samples * units * senders * channels) return;
    i64 c = i % channels, pair = i / channels;
    i64 u = pair / senders % units, n = pair / senders / units;
    const float* own = gates + (u * samples + n) * parts;
    float sum = 0;
    for (int s = 0; s < parts; s++) sum += own[s] * from[(pair * parts + s) * channels + c];
    out[i] += sum;
}

// dgates[u N + n, s] = sum over v, c of from[n, u, v, s, c] dout[n, u, v, c]; a warp for each.
extern "C" __global__ void edge_gate_gates(
    float* dgates, const float* from, const float* dout, int samples, int units, int senders,
    int channels, int parts
) {
    i64 i = WARP;
    if (i >= (i64)units * samples * parts) return;
    i64 s = i % parts, n = i / parts % samples, u = i / parts / samples;
    i64 first = (n * units + u) * senders;
    float sum = 0;
    for (int k = LANE; k < senders * channels; k += 32) {
        i64 pair = first + k / channels, c = k % channels;
        sum += from[(pair * parts + s) * channels + c] * dout[pair * channels + c];
    }
    sum = warp_sum(sum);
    if (LANE == 0) dgates[i] = sum;
}

// dfrom[n, u, v, s, c] += gates[u N + n, s] dout[n, u, v, c].
extern "C" __global__ void edge_gate_values(
    float* dfrom, const float* gates, const float* dout, int samples, int units, int senders,
    int channels, int parts
) {
    i64 i = INDEX;
    if (i >= (i64)samples * units * senders * parts * channels) return;
    i64 c = i % channels, s = i / channels % parts, pair = i / channels / parts;
    i64 u = pair / senders % units, n = pair / senders / units;
    dfrom[i] += gates[(u * samples + n) * parts + s] * dout[pair * channels + c];
}
