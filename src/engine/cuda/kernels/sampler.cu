// Steps of a sampler, see `gpt::sampler`. All are the same work on other numbers: those of every
// step are the rows of a table, of which one is taken at a time. So one recording does for all.

// What a row begins with: the factor of x_t that the network is given, then the weights of x_t
// and of the network's output in x_0, then those in x_{t-1} of x_0, of the x_0 of the step
// before, of x_t and of noise. The embedded timestep follows.
enum {
    SIGNAL, FROM_NOISED, FROM_OUTPUT, WEIGHT_START, WEIGHT_PREVIOUS, WEIGHT_NOISED, WEIGHT_NOISE
};

// Takes the row of this turn, and what is behind the noise of the last one: noise of this one
// begins there. One block.
extern "C" __global__ void take_step(
    float* step, int* turn, i64* positions, const float* table, const i64* next, int width,
    int streams
) {
    i64 row = *turn;
    for (int c = threadIdx.x; c < width; c += blockDim.x) step[c] = table[row * width + c];
    for (int s = threadIdx.x; s < streams; s += blockDim.x) positions[s] = next[s];
    __syncthreads();
    if (threadIdx.x == 0) *turn = (int)row + 1;
}

// x_0 is clipped, then x_{t-1} takes the place of x_t.
extern "C" __global__ void sampler_step(
    float* sample, float* previous, const float* output, const float* noise, const float* step,
    float low, float high, i64 count
) {
    i64 i = INDEX;
    if (i >= count) return;
    float x = sample[i], start = output[i];
    if (step[FROM_NOISED] != 0.0f || step[FROM_OUTPUT] != 1.0f) {
        start = step[FROM_NOISED] * x + step[FROM_OUTPUT] * start;
    }
    // Written so that a value that is not a number stays one, and shows.
    start = start < low ? low : start > high ? high : start;
    float next = start;
    if (step[WEIGHT_NOISED] != 0.0f || step[WEIGHT_START] != 1.0f) {
        next = step[WEIGHT_START] * start + step[WEIGHT_NOISED] * x;
        if (step[WEIGHT_PREVIOUS] != 0.0f) next += step[WEIGHT_PREVIOUS] * previous[i];
        if (step[WEIGHT_NOISE] != 0.0f) next += step[WEIGHT_NOISE] * noise[i];
    }
    sample[i] = next;
    previous[i] = start;
}
