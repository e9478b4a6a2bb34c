// Products of bytes: four of a lane of weights, stored as value + 128, with the four of a lane of inputs,
// -127 … 127. Exact. What a product sees of the weights is still too large by kOver.
//
// And of weights of 0 … 15, up to kNibbleDots products: begun from a sum, added, and ended as that sum and theirs.

constexpr int kNibbleDots = 8;

INLINE vi less_128(vi w) { return w ^ splat(static_cast<std::int32_t>(0x80808080U)); }

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define CHINCHILLA_SDOT
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(CHINCHILLA_SDOT)
// One instruction, which on x86 wants one of the two unsigned.
using ByteInputs = vi;
using ByteWeights = vi;
INLINE ByteInputs spread_bytes(const void* from) { return splat(load<std::int32_t>(from)); }
#if defined(CHINCHILLA_SDOT)
constexpr int kOver = 0;
INLINE ByteWeights byte_weights(vi w) { return less_128(w); }
INLINE vi dot_bytes(vi acc, vi w, vi x) { return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)x); }
#else
constexpr int kOver = 128;
INLINE ByteWeights byte_weights(vi w) { return w; }
#if defined(__AVX512VNNI__)
INLINE vi dot_bytes(vi acc, vi w, vi x) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x); }
#else
INLINE vi dot_bytes(vi acc, vi w, vi x) { return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x); }
#endif
#endif
INLINE ByteInputs spread_for_nibbles(const void* from) { return spread_bytes(from); }
INLINE vi begin_nibbles(vi sum) { return sum; }
INLINE vi dot_nibbles(vi acc, vi w, vi x) { return dot_bytes(acc, w, x); }
INLINE vi end_nibbles(vi, vi acc) { return acc; }

#else
constexpr int kOver = 0;
#if defined(__AVX2__)
// maddubs adds pairs of products in 16 bits, where 255 · 127 · 2 has no room but 128 · 127 · 2 does. So it is given the
// weights' magnitudes, and inputs that took the weights' signs.
using ByteInputs = vi;
struct ByteWeights {
    __m256i value, magnitude;
};
INLINE ByteInputs spread_bytes(const void* from) { return splat(load<std::int32_t>(from)); }
INLINE ByteWeights byte_weights(vi w) {
    const __m256i value = (__m256i)less_128(w);
    return {value, _mm256_abs_epi8(value)};
}
INLINE vi sum_pairs(vi pairs) { return (vi)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1)); }
INLINE vi dot_bytes(vi acc, const ByteWeights& w, vi x) {
    const __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8((__m256i)x, w.value));
    return in_place(acc + sum_pairs((vi)pairs));
}
INLINE ByteInputs spread_for_nibbles(const void* from) { return spread_bytes(from); }
INLINE vi dot_nibbles(vi acc, vi w, vi x) {
    return in_place((vi)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)w, (__m256i)x)));
}
#else
// The bytes of a lane as pairs of 16 bits, first and third, second and fourth: 128 · 127 · 2 has room.
typedef std::int16_t vs __attribute__((vector_size(4 * L)));
typedef std::uint16_t vus __attribute__((vector_size(4 * L)));  // of what is no number sums may go round
struct Pairs {
    vus even, odd;
};
using ByteInputs = Pairs;
using ByteWeights = Pairs;
INLINE Pairs pairs_of(vi bytes) { return {(vus)((vs)((vu)bytes << 8) >> 8), (vus)((vs)bytes >> 8)}; }
INLINE ByteInputs spread_bytes(const void* from) { return pairs_of(splat(load<std::int32_t>(from))); }
INLINE ByteWeights byte_weights(vi w) { return pairs_of(less_128(w)); }
INLINE vi sum_pairs(vi pairs) { return ((vi)((vu)pairs << 16) >> 16) + (pairs >> 16); }
INLINE vi dot_bytes(vi acc, const Pairs& w, const Pairs& x) { return acc + sum_pairs((vi)(w.even * x.even + w.odd * x.odd)); }
INLINE ByteInputs spread_for_nibbles(const void* from) { return spread_bytes(from); }
INLINE vi dot_nibbles(vi acc, vi w, const Pairs& x) {
    const Pairs of_w = pairs_of(w);
    return (vi)((vus)acc + of_w.even * x.even + of_w.odd * x.odd);
}
#endif
// Products of nibbles stay in 16 bits for a while: 8 · 15 · 127 · 2 has room.
INLINE vi begin_nibbles(vi) { return vi{}; }
INLINE vi end_nibbles(vi sum, vi acc) { return sum + sum_pairs(acc); }
#endif
