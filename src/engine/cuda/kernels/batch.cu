// The batch of a step of training, drawn from checkpoints that lie on the device.

// Threads of a block, each with one block of ChaCha8: 16 words for as many values.
#define DRAW_THREADS 128
// Values of a thread in shared memory, so far apart that threads do not ask one bank at once.
#define DRAW_PITCH 17

// Half precision.
struct f16 {
    unsigned short bits;
};

// Exact: the exponent's bias is 127 instead of 15.
__device__ inline float load(const f16* from, i64 i) {
    u32 bits = from[i].bits, magnitude = (bits & 0x7fffu) << 13;
    u32 infinite = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    u32 value = __float_as_uint(__uint_as_float(magnitude) * 5.192296858534828e33f);
    return __uint_as_float((bits & 0x8000u) << 16 | value | infinite);
}

// Which unit a parameter moves with along one axis of its tensor, and how far units lie apart;
// see `symmetry::UnitPlace`.
struct alignas(8) UnitPlace {
    u32 unit, step;
};

// Both checkpoints of each pair, with units moved, signs changed and scaled, to `start` and
// `clean`; the later one noised, weights[n, 0] x_0 + weights[n, 1] noise. `target` is the later
// one too, or the noise. `moves` has for every unit twice how far away the unit is that it
// becomes, plus one if its sign changes. Parameter p of sample n has the noise of word p of the
// stream from word (n + 1) 2^32 on, two values from each two words (Box and Muller 1958).
template <class X>
__device__ inline void draw_batch(
    float* noise, float* start, float* target, float* noised, const X* checkpoints,
    const i64* pairs, const int* moves, const UnitPlace* places, int units, int axes,
    const float* weights, float scale, const u32* key, i64 stream, int target_noise, i64 width
) {
    i64 block = (i64)blockIdx.y * DRAW_THREADS + threadIdx.x;
    u64 words[8];
    chacha8(key, (u64)stream, ((u64)(ROW + 1) << 28) + block, words);
    for (int i = 0; i < 8; i++) {
        // Above 0 and at most 1; 0 to 2 pi.
        float share = ((float)(u32)words[i] + 1.0f) * 2.3283064365386963e-10f;
        float angle = (float)(u32)(words[i] >> 32) * 1.4629180792671596e-9f;
        float radius = sqrtf(-2.0f * logf(share));
        noise[threadIdx.x * DRAW_PITCH + 2 * i] = radius * cosf(angle);
        noise[threadIdx.x * DRAW_PITCH + 2 * i + 1] = radius * sinf(angle);
    }
    __syncthreads();
    const X* earlier = checkpoints + pairs[2 * ROW] * width;
    const X* later = checkpoints + pairs[2 * ROW + 1] * width;
    const int* own = moves + ROW * units;
    float signal = weights[2 * ROW], spread = weights[2 * ROW + 1];
    for (int i = 0; i < 16; i++) {
        int at = i * DRAW_THREADS + (int)threadIdx.x;
        i64 c = (i64)blockIdx.y * (16 * DRAW_THREADS) + at;
        if (c >= width) return;
        i64 from = c;
        u32 flipped = 0;
        for (int a = 0; a < axes; a++) {
            UnitPlace place = places[a * width + c];
            int move = own[place.unit >> 1];
            from += (i64)(move >> 1) * place.step;
            flipped ^= (u32)move & place.unit;
        }
        float factor = flipped & 1 ? -scale : scale;
        float clean = load(later, from) * factor;
        float e = noise[at / 16 * DRAW_PITCH + at % 16];
        i64 to = ROW * width + c;
        start[to] = load(earlier, from) * factor;
        target[to] = target_noise ? e : clean;
        noised[to] = signal * clean + spread * e;
    }
}

extern "C" __global__ void draw_batch_f32(
    float* start, float* target, float* noised, const float* checkpoints, const i64* pairs,
    const int* moves, const UnitPlace* places, int units, int axes, const float* weights,
    float scale, const u32* key, i64 stream, int target_noise, i64 width
) {
    __shared__ float noise[DRAW_THREADS * DRAW_PITCH];
    draw_batch(noise, start, target, noised, checkpoints, pairs, moves, places, units, axes,
        weights, scale, key, stream, target_noise, width);
}

extern "C" __global__ void draw_batch_f16(
    float* start, float* target, float* noised, const f16* checkpoints, const i64* pairs,
    const int* moves, const UnitPlace* places, int units, int axes, const float* weights,
    float scale, const u32* key, i64 stream, int target_noise, i64 width
) {
    __shared__ float noise[DRAW_THREADS * DRAW_PITCH];
    draw_batch(noise, start, target, noised, checkpoints, pairs, moves, places, units, axes,
        weights, scale, key, stream, target_noise, width);
}
