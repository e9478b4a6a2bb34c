// AVX-VNNI and AVX-512 in plain C++, for tests of their kernels on a CPU that has only AVX2. Included in front of
// kernels.cpp by -DCHINCHILLA_EMULATE=ALL (CMakeLists.txt), which compiles them without any of those instructions: vectors
// of 64 bytes become two of 32, and the intrinsics that lanes.h and bytes.h use are the functions here. Slow, and not what
// rcp14 gives to the last digit, but within its error.
#pragma once

#include <immintrin.h>

#if CHINCHILLA_EMULATED_SET == 1
#define __AVXVNNI__ 1
#else
#define __AVX512F__ 1
#define __AVX512VNNI__ 1
#endif
#if CHINCHILLA_EMULATED_SET == 3
#define __AVX512BF16__ 1
#endif

namespace emulated {

typedef float floats __attribute__((vector_size(64)));
typedef int words __attribute__((vector_size(64)));

#define EMULATED static inline __attribute__((always_inline))

template <class V, class F>
EMULATED V each(F&& lane) {
    V result;
    for (int i = 0; i < 16; ++i) result[i] = lane(i);
    return result;
}

EMULATED floats max_ps(floats a, floats b) { return each<floats>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; }); }
EMULATED floats min_ps(floats a, floats b) { return each<floats>([&](int i) { return a[i] < b[i] ? a[i] : b[i]; }); }
EMULATED words max_epi32(words a, words b) { return each<words>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; }); }

EMULATED float reduce_add_ps(floats a) {
    float total = 0.0F;
    for (int i = 0; i < 16; ++i) total += a[i];
    return total;
}

template <class T, class V>
EMULATED T highest(V a) {
    T found = a[0];
    for (int i = 1; i < 16; ++i) found = a[i] > found ? a[i] : found;
    return found;
}
EMULATED float reduce_max_ps(floats a) { return highest<float>(a); }
EMULATED int reduce_max_epi32(words a) { return highest<int>(a); }

EMULATED __m256i half_of(words a, int which) {
    __m256i half;
    __builtin_memcpy(&half, reinterpret_cast<const char*>(&a) + 32 * which, 32);
    return half;
}
EMULATED __m256i castsi512_si256(words a) { return half_of(a, 0); }
EMULATED __m256i extracti64x4_epi64(words a, int which) { return half_of(a, which); }

EMULATED int dot_bytes(int sum, int w, int x) {
    unsigned total = static_cast<unsigned>(sum);
    for (int shift = 0; shift < 32; shift += 8) {
        const int weight = static_cast<int>((static_cast<unsigned>(w) >> shift) & 255U);
        total += static_cast<unsigned>(weight * static_cast<signed char>(static_cast<unsigned>(x) >> shift));
    }
    return static_cast<int>(total);
}
EMULATED words dpbusd_epi32(words sum, words w, words x) {
    return each<words>([&](int i) { return dot_bytes(sum[i], w[i], x[i]); });
}
typedef int short_words __attribute__((vector_size(32)));
EMULATED __m256i dpbusd_avx_epi32(__m256i sum, __m256i w, __m256i x) {
    short_words result = (short_words)sum;
    for (int i = 0; i < 8; ++i) result[i] = dot_bytes(result[i], ((short_words)w)[i], ((short_words)x)[i]);
    return (__m256i)result;
}

EMULATED float half_float(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
EMULATED floats dpbf16_ps(floats sum, words w, words x) {
    return each<floats>([&](int i) {
        const unsigned a = static_cast<unsigned>(w[i]), b = static_cast<unsigned>(x[i]);
        const float high = half_float(a & 0xffff0000U) * half_float(b & 0xffff0000U);
        return sum[i] + high + half_float(a << 16) * half_float(b << 16);
    });
}

EMULATED floats cvtph_ps(__m256i halves) {
    floats result;
    const __m256 parts[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
    __builtin_memcpy(&result, parts, 64);
    return result;
}

EMULATED words cvtps_epi32(floats a) { return each<words>([&](int i) { return _mm_cvtss_si32(_mm_set_ss(a[i])); }); }
EMULATED floats roundscale_ps(floats a, int) { return each<floats>([&](int i) { return __builtin_nearbyintf(a[i]); }); }
EMULATED floats scalef_ps(floats a, floats n) {
    return each<floats>([&](int i) {
        if (n[i] != n[i]) return n[i];
        const float whole = __builtin_floorf(n[i]);
        return __builtin_ldexpf(a[i], static_cast<int>(whole < -300.0F ? -300.0F : whole > 300.0F ? 300.0F : whole));
    });
}
// As far off as the real one may be.
EMULATED floats rcp14_ps(floats a) { return each<floats>([&](int i) { return (1.0F + 0x1p-14F) / a[i]; }); }

EMULATED __m128i cvtepi32_epi8(words a) {
    __m128i bytes;
    for (int i = 0; i < 16; ++i) reinterpret_cast<char*>(&bytes)[i] = static_cast<char>(a[i]);
    return bytes;
}

}  // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::dpbusd_avx_epi32
#if defined(__AVX512F__)
#define __m512 emulated::floats
#define __m512i emulated::words
#define __m512bh emulated::words
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_max_epi32 emulated::max_epi32
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_reduce_max_epi32 emulated::reduce_max_epi32
#define _mm512_castsi512_si256 emulated::castsi512_si256
#define _mm512_extracti64x4_epi64 emulated::extracti64x4_epi64
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_roundscale_ps emulated::roundscale_ps
#define _mm512_scalef_ps emulated::scalef_ps
#define _mm512_rcp14_ps emulated::rcp14_ps
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#endif
