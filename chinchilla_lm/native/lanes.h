// Vectors as wide as the instruction set, and the primitives in which the sets differ. Included into a namespace of
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

// a > b ? a : b and a < b ? a : b: b where one is NaN.
#if defined(__AVX512F__)
INLINE vf largest(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf smallest(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vi largest(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
INLINE vf largest(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf smallest(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vi largest(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
INLINE vf largest(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf smallest(vf a, vf b) { return choose(a < b, a, b); }
INLINE vi largest(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
#endif

// Across the lanes; highest() is not asked about NaN.
#if defined(__AVX512F__)
INLINE float sum(vf x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float highest(vf x) { return _mm512_reduce_max_ps((__m512)x); }
INLINE std::int32_t highest(vi x) { return _mm512_reduce_max_epi32((__m512i)x); }
#elif defined(__AVX2__)
INLINE float sum(vf x) {
    __m128 part = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    part = _mm_add_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_add_ss(part, _mm_movehdup_ps(part)));
}

INLINE float highest(vf x) {
    __m128 part = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    part = _mm_max_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_max_ss(part, _mm_movehdup_ps(part)));
}

INLINE std::int32_t highest(vi x) {
    __m128i part = _mm_max_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    part = _mm_max_epi32(part, _mm_shuffle_epi32(part, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(part, _mm_shuffle_epi32(part, 0xb1)));
}
#else
INLINE float sum(vf x) {
    float total = 0.0F;
    for (int lane = 0; lane < L; ++lane) total += x[lane];
    return total;
}

INLINE float highest(vf x) {
    float found = x[0];
    for (int lane = 1; lane < L; ++lane) found = x[lane] > found ? x[lane] : found;
    return found;
}

INLINE std::int32_t highest(vi x) {
    std::int32_t found = x[0];
    for (int lane = 1; lane < L; ++lane) found = x[lane] > found ? x[lane] : found;
    return found;
}
#endif

#if defined(__AVX2__)
INLINE std::int32_t sum(vi x) {
#if defined(__AVX512F__)
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)x), _mm512_extracti64x4_epi64((__m512i)x, 1));
#else
    const __m256i half = (__m256i)x;
#endif
    __m128i part = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    part = _mm_add_epi32(part, _mm_shuffle_epi32(part, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(part, _mm_shuffle_epi32(part, 0xb1)));
}
#else
INLINE std::int32_t sum(vi x) {
    std::int32_t total = 0;
    for (int lane = 0; lane < L; ++lane) total += x[lane];
    return total;
}
#endif

// A sum that is made where it stands. GCC puts sums off where it can, and with 16 registers spills what is to be added.
template <class T>
INLINE T in_place(T sum) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    asm("" : "+x"(sum));
#endif
    return sum;
}

// acc + Σ of 2: a lane of weights and one of inputs hold two bfloat16 each.
#if defined(__AVX512BF16__)
using HalfInputs = vi;
INLINE HalfInputs spread_halves(const void* from) { return splat(load<std::int32_t>(from)); }
INLINE vf dot_bf16(vf acc, vi w, HalfInputs x) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x); }
#else
INLINE vf low_half(vi x) { return (vf)((vu)x << 16); }
INLINE vf high_half(vi x) { return (vf)(x & splat(static_cast<std::int32_t>(0xffff0000U))); }
struct HalfInputs {
    vf low, high;
};
INLINE HalfInputs spread_halves(const void* from) {
    const vi both = in_place(splat(load<std::int32_t>(from)));  // else GCC parts them first, and spreads each
    return {low_half(both), high_half(both)};
}
INLINE vf dot_bf16(vf acc, vi w, const HalfInputs& x) {
    acc = in_place(acc + low_half(w) * x.low);
    return acc + high_half(w) * x.high;
}
#endif

// L float16 numbers.
#if defined(__AVX512F__)
INLINE vf load_f16(const void* from) { return (vf)_mm512_cvtph_ps(load<__m256i>(from)); }
#elif defined(__F16C__)
INLINE vf load_f16(const void* from) { return (vf)_mm256_cvtph_ps(load<__m128i>(from)); }
#elif defined(__aarch64__)
INLINE vf load_f16(const void* from) { return (vf)vcvt_f32_f16(load<float16x4_t>(from)); }
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
#if defined(__AVX512F__)
INLINE vi round_to_int(vf x) { return (vi)_mm512_cvtps_epi32((__m512)x); }
INLINE vf round_to_whole(vf x) { return (vf)_mm512_roundscale_ps((__m512)x, 0); }
#else
INLINE vf round_to_whole(vf x) {
    constexpr float magic = 12582912.0F;
    return (x + magic) - magic;
}
INLINE vi round_to_int(vf x) {
    constexpr float magic = 12582912.0F;  // 1.5 · 2^23: adding it leaves the integer in the low bits
    return (vi)((vu)(x + magic) - 0x4b400000U);
}
#endif

// p · 2^n, for n a whole number of -126 … 127 and p near 1.
#if defined(__AVX512F__)
INLINE vf times_power(vf p, vf n) { return (vf)_mm512_scalef_ps((__m512)p, (__m512)n); }
#else
INLINE vf times_power(vf p, vf n) { return p * (vf)(((vu)__builtin_convertvector(n, vi) + 127U) << 23); }
#endif

// 1 / x to a unit or two in the last place, for x of 1 … 2^126.
#if defined(__AVX512F__)
INLINE vf inverse(vf x) {
    const vf near = (vf)_mm512_rcp14_ps((__m512)x);
    return near * (2.0F - x * near);
}
#else
INLINE vf inverse(vf x) { return 1.0F / x; }
#endif

// The low bytes of L integers, one after another.
#if defined(__AVX512F__)
INLINE void store_bytes(void* to, vi x) { store(to, _mm512_cvtepi32_epi8((__m512i)x)); }
#elif defined(__AVX2__)
INLINE void store_bytes(void* to, vi x) {
    const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                           0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)x, first);
    store(to, _mm_cvtsi128_si64(_mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1))));
}
#else
INLINE void store_bytes(void* to, vi x) {
    typedef signed char vb __attribute__((vector_size(L)));
    store(to, __builtin_convertvector(x, vb));
}
#endif
