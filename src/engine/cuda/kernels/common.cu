// What every kernel uses: number types, sums over warps and blocks.
//
// Kernels include nothing: NVRTC needs no headers, and tests/emulated compile the
// same text with a C++ compiler. Counts of values are 64 bits wide, for a batch may
// hold more than 2^31 of them.

typedef unsigned int u32;
typedef long long i64;

// The upper half of a float.
struct bf16 {
    unsigned short bits;
};

__device__ inline float load(const float* from, i64 i) { return from[i]; }

__device__ inline float load(const bf16* from, i64 i) {
    return __uint_as_float((u32)from[i].bits << 16);
}

__device__ inline void store(float* to, i64 i, float value) { to[i] = value; }

// Rounds to the nearest, halves to even; what is not a number stays one.
__device__ inline void store(bf16* to, i64 i, float value) {
    u32 bits = __float_as_uint(value);
    u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    bool is_number = (bits & 0x7fffffffu) <= 0x7f800000u;
    to[i].bits = (unsigned short)((is_number ? rounded : (bits | 0x00400000u)) >> 16);
}

// Sums in every lane of a warp, always in the same order.
__device__ inline float warp_sum(float value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

__device__ inline double warp_sum(double value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

__device__ inline float warp_max(float value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// The sum over a block of at most 1024 threads, in all of its threads. `partial` is
// shared memory for 32 values.
__device__ inline double block_sum(double value, double* partial) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_sum(value);
    __syncthreads();
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++) sum += partial[i];
    return sum;
}

// Where a kernel stands that has a block for each row and, along y, for so many columns.
#define ROW ((i64)blockIdx.x)
#define COLUMN ((int)(blockIdx.y * blockDim.x + threadIdx.x))
// Where a kernel stands that has a thread for each value.
#define INDEX ((i64)blockIdx.x * blockDim.x + threadIdx.x)
// Where a kernel stands that has a warp for each row.
#define WARP ((i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32)
#define LANE ((int)(threadIdx.x % 32))
