// Vectors as wide as the instruction set, and the four primitives in which the sets differ. Included into a namespace of
// its own by each build of kernels.cpp: what is inline here must not be shared between instruction sets.
//
// GCC's vector types compile on every architecture; only the dot products need intrinsics to be fast.

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif
constexpr int V = kLanes / L;  // vectors of a panel

typedef float vf __attribute__((vector_size(4 * L)));
typedef std::int32_t vi __attribute__((vector_size(4 * L)));
typedef std::uint32_t vu __attribute__((vector_size(4 * L)));

template <class T>
INLINE T load(const void* from) {
    T value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
INLINE void store(void* to, T value) {
    __builtin_memcpy(to, &value, sizeof value);
}

INLINE vf splat(float x) { return x - vf{}; }
INLINE vi splat(std::int32_t x) { return x - vi{}; }
INLINE vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
INLINE vf largest(vf a, vf b) { return choose(a > b, a, b); }

#if defined(__AVX512F__)
INLINE float sum(vf x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE std::int32_t sum(vi x) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)x), _mm512_extracti64x4_epi64((__m512i)x, 1));
    __m128i part = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    part = _mm_add_epi32(part, _mm_shuffle_epi32(part, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(part, _mm_shuffle_epi32(part, 0xb1)));
}
INLINE float highest(vf x) { return _mm512_reduce_max_ps((__m512)x); }
#else
INLINE float sum(vf x) {
    float total = 0.0F;
    for (int lane = 0; lane < L; ++lane) total += x[lane];
    return total;
}

INLINE std::int32_t sum(vi x) {
    std::int32_t total = 0;
    for (int lane = 0; lane < L; ++lane) total += x[lane];
    return total;
}

INLINE float highest(vf x) {
    float found = x[0];
    for (int lane = 1; lane < L; ++lane) found = x[lane] > found ? x[lane] : found;
    return found;
}
#endif

// acc + Σ of 4: each 32-bit lane of w holds four unsigned bytes, x four signed ones. Exact.
#if defined(__AVX512VNNI__)
INLINE vi dot_bytes(vi acc, vi w, vi x) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x); }
#elif defined(__AVX2__)
INLINE vi dot_bytes(vi acc, vi w, vi x) {
    // Not maddubs, whose sums of two 16-bit products saturate: even and odd bytes as 16-bit numbers instead.
    const __m256i even_w = _mm256_and_si256((__m256i)w, _mm256_set1_epi16(0xff));
    const __m256i odd_w = _mm256_srli_epi16((__m256i)w, 8);
    const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
    const __m256i odd_x = _mm256_srai_epi16((__m256i)x, 8);
    const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(even_w, even_x), _mm256_madd_epi16(odd_w, odd_x));
    return acc + (vi)pairs;
}
#else
INLINE vi dot_bytes(vi acc, vi w, vi x) {
    for (int shift = 0; shift < 32; shift += 8) {
        acc += (vi)(((vu)w >> shift) & 0xffU) * ((vi)((vu)x << (24 - shift)) >> 24);
    }
    return acc;
}
#endif

// acc + Σ of 2: each 32-bit lane of w and x holds two bfloat16.
#if defined(__AVX512BF16__)
INLINE vf dot_bf16(vf acc, vi w, vi x) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x); }
#else
INLINE vf dot_bf16(vf acc, vi w, vi x) {
    acc += (vf)((vu)w << 16) * (vf)((vu)x << 16);
    return acc + (vf)(w & splat(static_cast<std::int32_t>(0xffff0000U))) *
                     (vf)(x & splat(static_cast<std::int32_t>(0xffff0000U)));
}
#endif

// L float16 numbers.
#if defined(__AVX512F__)
INLINE vf load_f16(const void* from) { return (vf)_mm512_cvtph_ps(load<__m256i>(from)); }
#elif defined(__F16C__)
INLINE vf load_f16(const void* from) { return (vf)_mm256_cvtph_ps(load<__m128i>(from)); }
#else
INLINE vf load_f16(const void* from) {
    vf value;
    for (int lane = 0; lane < L; ++lane) {
        const std::uint32_t half = load<std::uint16_t>(static_cast<const char*>(from) + 2 * lane);
        // The exponent moves from bias 15 to 127 by a product, which is exact for subnormal numbers too.
        const std::uint32_t bits = (half & 0x7fffU) << 13;
        float magnitude = load<float>(&bits) * 0x1p112F;
        value[lane] = (half & 0x8000U) ? -magnitude : magnitude;
    }
    return value;
}
#endif

// x rounded to the nearest integer, as integers, for |x| < 2^22; of anything else some integer.
INLINE vi round_to_int(vf x) {
    constexpr float magic = 12582912.0F;  // 1.5 · 2^23: adding it leaves the integer in the low bits
    return (vi)((vu)(x + magic) - 0x4b400000U);
}
