// Steps over flat buffers: the optimizer and the sampler.

// AdamW and the moving average of the parameters: m = b1 m + (1 - b1) g,
// v = b2 v + (1 - b2) g^2, p = p keep - step m / (sqrt(v) correction + epsilon),
// a = decay a + (1 - decay) p. `narrow` is a copy of the parameters for products in bf16, or
// null. Nothing is done once the training has ended in values that are not finite.
//
// Loshchilov and Hutter 2017, arXiv:1711.05101.
extern "C" __global__ void adamw(
    float* parameters, float* first, float* second, float* average, bf16* narrow,
    const float* gradient, const unsigned char* decayed, const double* figures, float beta1,
    float beta2, float epsilon, float step, float correction, float keep, float average_decay,
    i64 count
) {
    i64 i = INDEX;
    if (i >= count || figures[3] != 0.0) return;
    float g = gradient[i] * (float)figures[2];
    float m = beta1 * first[i] + (1.0f - beta1) * g;
    float v = beta2 * second[i] + (1.0f - beta2) * g * g;
    float p = parameters[i] * (decayed[i] ? keep : 1.0f);
    p -= step * m / (sqrtf(v) * correction + epsilon);
    first[i] = m;
    second[i] = v;
    parameters[i] = p;
    average[i] = average_decay * (average[i] - p) + p;
    if (narrow) store(narrow, i, p);
}

// One step of a sampler, see `gpt::sampler`: x_0 = from_noised x_t + from_output output,
// clipped, then x_{t-1} = a x_0 + a' x_0' + b x_t + c noise.
extern "C" __global__ void sampler_step(
    float* sample, float* previous, const float* output, const float* noise, float from_noised,
    float from_output, float low, float high, float weight_start, float weight_previous,
    float weight_noised, float weight_noise, i64 count
) {
    i64 i = INDEX;
    if (i >= count) return;
    float x = sample[i], start = output[i];
    if (from_noised != 0.0f || from_output != 1.0f) start = from_noised * x + from_output * start;
    // Written so that a value that is not a number stays one, and shows.
    start = start < low ? low : start > high ? high : start;
    float next = start;
    if (weight_noised != 0.0f || weight_start != 1.0f) {
        next = weight_start * start + weight_noised * x;
        if (weight_previous != 0.0f) next += weight_previous * previous[i];
        if (weight_noise != 0.0f) next += weight_noise * noise[i];
    }
    sample[i] = next;
    previous[i] = start;
}
