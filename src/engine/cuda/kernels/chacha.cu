// The stream cipher that the crate rand_chacha makes random numbers with: each block of a stream
// can be had by itself.
//
// Bernstein 2008, ChaCha, a variant of Salsa20.

typedef unsigned long long u64;

__device__ inline u32 rotated(u32 value, int bits) {
    return (value << bits) | (value >> (32 - bits));
}

__device__ inline void quarter_round(u32& a, u32& b, u32& c, u32& d) {
    a += b; d = rotated(d ^ a, 16);
    c += d; b = rotated(b ^ c, 12);
    a += b; d = rotated(d ^ a, 8);
    c += d; b = rotated(b ^ c, 7);
}

// Words 8 block to 8 block + 7 of a stream.
__device__ inline void chacha8(const u32* key, u64 stream, u64 block, u64* words) {
    u32 first[16] = {
        0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, key[0], key[1], key[2], key[3],
        key[4], key[5], key[6], key[7], (u32)block, (u32)(block >> 32), (u32)stream,
        (u32)(stream >> 32)
    };
    u32 s[16];
    for (int i = 0; i < 16; i++) s[i] = first[i];
    for (int i = 0; i < 4; i++) {
        quarter_round(s[0], s[4], s[8], s[12]);
        quarter_round(s[1], s[5], s[9], s[13]);
        quarter_round(s[2], s[6], s[10], s[14]);
        quarter_round(s[3], s[7], s[11], s[15]);
        quarter_round(s[0], s[5], s[10], s[15]);
        quarter_round(s[1], s[6], s[11], s[12]);
        quarter_round(s[2], s[7], s[8], s[13]);
        quarter_round(s[3], s[4], s[9], s[14]);
    }
    for (int i = 0; i < 8; i++) {
        words[i] = (u64)(s[2 * i] + first[2 * i])
            | (u64)(s[2 * i + 1] + first[2 * i + 1]) << 32;
    }
}
