// Gaussian noise from a seed, and the same as on the host: the crate rand_distr's ziggurat on the
// words of ChaCha8.
//
// A stream is ChaCha8's, read in words of 64 bits. An *attempt* at a value begins at a word: it
// takes that one, rarely more, and gives a value or nothing; the next attempt begins behind it.
// What an attempt that begins at a word takes and gives depends on that word and on those that
// follow, so all are made at once. Where attempts do begin is found by walking from one to the
// next. A walk need not start at the beginning of the stream: two of them are the same from the
// first word on that both meet, and 98.8 % of all attempts take one word. Every thread starts
// NOISE_LEAD words ahead of its own, as if an attempt began there; that its walk has not met the
// true one by then has a chance below 1e-30.
//
// Bernstein 2008, ChaCha, a variant of Salsa20. Doornik 2005, An improved ziggurat method to
// generate normal random samples.

#define NOISE_THREADS 128
#define NOISE_LEAD 64
// Words that a block looks at, eight for each thread, and those that are its own.
#define NOISE_WORDS (8 * NOISE_THREADS)
#define NOISE_OWN (NOISE_WORDS - NOISE_LEAD)

__device__ inline u64 stream_word(const u32* key, u64 stream, u64 place) {
    u64 words[8];
    chacha8(key, stream, place / 8, words);
    return words[place % 8];
}

// Above 0 and below 1.
__device__ inline double open01(u64 word) {
    return __longlong_as_double((word >> 12) | 0x3ff0000000000000ull) - (1.0 - 0x1p-53);
}

// An attempt that begins with `word`, at `place`. `layers` holds x_0 to x_256, the widths of the
// ziggurat's layers, and the density at each. Returns how many words it takes, negative if it
// gives nothing.
__device__ inline int attempt(
    const u32* key, u64 stream, u64 place, u64 word, const double* layers, float* value
) {
    const double* density = layers + 257;
    int layer = (int)(word & 255);
    double u = __longlong_as_double((word >> 12) | 0x4000000000000000ull) - 3.0;
    double x = u * layers[layer];
    *value = (float)x;
    if (fabs(x) < layers[layer + 1]) return 1;
    if (layer > 0) {
        double between = (double)(stream_word(key, stream, place + 1) >> 11) * 0x1p-53;
        double height = density[layer + 1] + (density[layer] - density[layer + 1]) * between;
        return height < exp(-x * x / 2.0) ? 2 : -2;
    }
    // The tail.
    for (int words = 3;; words += 2) {
        double a = log(open01(stream_word(key, stream, place + words - 2))) / layers[1];
        double b = log(open01(stream_word(key, stream, place + words - 1)));
        if (-2.0 * b < a * a) continue;
        *value = (float)(u < 0.0 ? a - layers[1] : layers[1] - a);
        return words;
    }
}

// Makes the attempts of this block, and finds which of those at the eight words of this thread
// are made by a walk from `position` on and give a value, as bits.
__device__ inline u32 given_values(
    const u32* key, u64 stream, i64 position, const double* layers, float* values, short* lengths
) {
    int own = 8 * (int)threadIdx.x;
    // The stream's word that the first of this block is; before the stream in the first block.
    i64 window = position / 8 * 8 + (i64)blockIdx.x * NOISE_OWN - NOISE_LEAD;
    if (window + own + 8 > position) {
        u64 words[8];
        u64 place = (u64)(window + own);
        chacha8(key, stream, place / 8, words);
        for (int i = 0; i < 8; i++) {
            int j = own + i;
            lengths[j] = (short)attempt(key, stream, place + i, words[i], layers, values + j);
        }
    }
    __syncthreads();
    if (own < NOISE_LEAD) return 0;
    i64 start = position - window;
    i64 at = own - NOISE_LEAD > start ? own - NOISE_LEAD : start;
    u32 given = 0;
    while (at < own + 8) {
        int length = lengths[at];
        if (at >= own && length > 0) given |= 1u << (at - own);
        at += length < 0 ? -length : length;
    }
    return given;
}

__device__ inline int bits_of(u32 value) {
    int count = 0;
    for (; value; value &= value - 1) count++;
    return count;
}

// The stream of a block along y: they are numbered from one on.
__device__ inline u64 own_stream(const u32* key) {
    return ((u64)key[9] << 32 | key[8]) + blockIdx.y;
}

// counts[stream, block] = how many values the block's words give; a block for so many words,
// and along y for each stream. `key` is the seed's, and the number of the first stream. Nothing
// is drawn in a step whose weight of noise is 0.
extern "C" __global__ void noise_counts(
    int* counts, const i64* positions, const u32* key, const double* layers, const float* step
) {
    __shared__ float values[NOISE_WORDS];
    __shared__ short lengths[NOISE_WORDS];
    __shared__ double partial[32];
    if (step[WEIGHT_NOISE] == 0.0f) return;
    i64 position = positions[blockIdx.y];
    u32 given = given_values(key, own_stream(key), position, layers, values, lengths);
    double sum = block_sum((double)bits_of(given), partial);
    if (threadIdx.x == 0) counts[(i64)blockIdx.y * gridDim.x + blockIdx.x] = (int)sum;
}

// The values, times a temperature: `each` from every stream, `count` in all. The next draw
// begins at `next`.
extern "C" __global__ void noise_values(
    float* to, i64* next, const int* counts, const i64* positions, const u32* key,
    const double* layers, const float* step, float temperature, i64 each, i64 count
) {
    __shared__ float values[NOISE_WORDS];
    __shared__ short lengths[NOISE_WORDS];
    __shared__ double partial[32];
    __shared__ int given_by[NOISE_THREADS];
    if (step[WEIGHT_NOISE] == 0.0f) return;
    i64 position = positions[blockIdx.y];
    u32 given = given_values(key, own_stream(key), position, layers, values, lengths);
    double sum = 0;
    const int* before = counts + (i64)blockIdx.y * gridDim.x;
    for (int i = threadIdx.x; i < (int)blockIdx.x; i += NOISE_THREADS) sum += before[i];
    i64 index = (i64)block_sum(sum, partial);
    given_by[threadIdx.x] = bits_of(given);
    __syncthreads();
    for (int i = 0; i < (int)threadIdx.x; i++) index += given_by[i];
    i64 first = (i64)blockIdx.y * each;
    i64 end = count - first < each ? count - first : each;
    for (int j = 8 * (int)threadIdx.x; given; given >>= 1, j++) {
        if (!(given & 1)) continue;
        if (index < end) to[first + index] = values[j] * temperature;
        if (index == end - 1) {
            i64 window = position / 8 * 8 + (i64)blockIdx.x * NOISE_OWN - NOISE_LEAD;
            next[blockIdx.y] = window + j + lengths[j];
        }
        index++;
    }
}
