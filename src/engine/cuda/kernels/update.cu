// A step of the optimizer over flat buffers.

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
