// Bytes looked up in tables of 16, 64 and 256 of them, a vector of codes at a time, and bytes spread over a mask. Codes of
// a smaller table are below its size.

#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__)
#define CHINCHILLA_VBMI
#endif

template <int Entries>
struct Table;

#if defined(CHINCHILLA_VBMI)

template <>
struct Table<16> {
    __m512i bytes;
    INLINE Table of(const std::byte* from) { return {_mm512_broadcast_i32x4(load<__m128i>(from))}; }
    __attribute__((always_inline)) vi operator()(vi codes) const { return (vi)_mm512_shuffle_epi8(bytes, (__m512i)codes); }
};

template <>
struct Table<64> {
    __m512i bytes;
    INLINE Table of(const std::byte* from) { return {load<__m512i>(from)}; }
    __attribute__((always_inline)) vi operator()(vi codes) const { return (vi)_mm512_permutexvar_epi8((__m512i)codes, bytes); }
};

template <>
struct Table<256> {
    __m512i bytes[4];
    INLINE Table of(const std::byte* from) {
        return {{load<__m512i>(from), load<__m512i>(from + 64), load<__m512i>(from + 128), load<__m512i>(from + 192)}};
    }
    __attribute__((always_inline)) vi operator()(vi codes) const {
        const __m512i at = (__m512i)codes;
        const __m512i low = _mm512_permutex2var_epi8(bytes[0], at, bytes[1]);
        const __m512i high = _mm512_permutex2var_epi8(bytes[2], at, bytes[3]);
        return (vi)_mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high);
    }
};

#elif defined(__AVX2__)

// Vectors of 64 bytes without a look-up of their own are two of 32.
template <class F>
INLINE vi by_halves(vi codes, F&& look_up) {
    __m256i parts[sizeof(vi) / 32];
    __builtin_memcpy(parts, &codes, sizeof codes);
    for (__m256i& part : parts) part = look_up(part);
    return load<vi>(parts);
}

INLINE __m256i of_16(const std::byte* table, __m256i low) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load<__m128i>(table)), low);
}

// low: the last 4 bits of each code, which is below 64 but for its two highest bits.
INLINE __m256i of_64(const std::byte* table, __m256i codes, __m256i low) {
    const __m256i bit_4 = _mm256_slli_epi16(codes, 3), bit_5 = _mm256_slli_epi16(codes, 2);
    const __m256i first = _mm256_blendv_epi8(of_16(table, low), of_16(table + 16, low), bit_4);
    const __m256i second = _mm256_blendv_epi8(of_16(table + 32, low), of_16(table + 48, low), bit_4);
    return _mm256_blendv_epi8(first, second, bit_5);
}

template <>
struct Table<16> {
    const std::byte* bytes;
    INLINE Table of(const std::byte* from) { return {from}; }
    __attribute__((always_inline)) vi operator()(vi codes) const {
        return by_halves(codes, [&](__m256i at) { return of_16(bytes, at); });
    }
};

template <>
struct Table<64> {
    const std::byte* bytes;
    INLINE Table of(const std::byte* from) { return {from}; }
    __attribute__((always_inline)) vi operator()(vi codes) const {
        return by_halves(codes, [&](__m256i at) { return of_64(bytes, at, _mm256_and_si256(at, _mm256_set1_epi8(15))); });
    }
};

template <>
struct Table<256> {
    const std::byte* bytes;
    INLINE Table of(const std::byte* from) { return {from}; }
    __attribute__((always_inline)) vi operator()(vi codes) const {
        return by_halves(codes, [&](__m256i at) {
            const __m256i low = _mm256_and_si256(at, _mm256_set1_epi8(15)), bit_6 = _mm256_slli_epi16(at, 1);
            const __m256i first = _mm256_blendv_epi8(of_64(bytes, at, low), of_64(bytes + 64, at, low), bit_6);
            const __m256i second = _mm256_blendv_epi8(of_64(bytes + 128, at, low), of_64(bytes + 192, at, low), bit_6);
            return _mm256_blendv_epi8(first, second, at);
        });
    }
};

#elif defined(__aarch64__)

template <>
struct Table<16> {
    uint8x16_t bytes;
    INLINE Table of(const std::byte* from) { return {load<uint8x16_t>(from)}; }
    __attribute__((always_inline)) vi operator()(vi codes) const { return (vi)vqtbl1q_u8(bytes, (uint8x16_t)codes); }
};

template <>
struct Table<64> {
    uint8x16x4_t bytes;
    INLINE Table of(const std::byte* from) { return {load<uint8x16x4_t>(from)}; }
    __attribute__((always_inline)) vi operator()(vi codes) const { return (vi)vqtbl4q_u8(bytes, (uint8x16_t)codes); }
};

template <>
struct Table<256> {
    const std::byte* bytes;
    INLINE Table of(const std::byte* from) { return {from}; }
    __attribute__((always_inline)) vi operator()(vi codes) const {
        uint8x16_t found = vdupq_n_u8(0);  // a code outside its quarter finds nothing there
        for (int quarter = 0; quarter < 4; ++quarter) {
            const uint8x16_t at = vsubq_u8((uint8x16_t)codes, vdupq_n_u8(static_cast<std::uint8_t>(64 * quarter)));
            found = vorrq_u8(found, vqtbl4q_u8(load<uint8x16x4_t>(bytes + 64 * quarter), at));
        }
        return (vi)found;
    }
};

#else

template <int Entries>
struct Table {
    const std::byte* bytes;
    INLINE Table of(const std::byte* from) { return {from}; }
    __attribute__((always_inline)) vi operator()(vi codes) const {
        std::uint8_t at[sizeof(vi)];
        __builtin_memcpy(at, &codes, sizeof codes);
        for (std::uint8_t& one : at) one = static_cast<std::uint8_t>(bytes[one]);
        return load<vi>(at);
    }
};

#endif

// The first `Some` bytes of a panel's 64, 16 or 32 of them.
template <int Some>
INLINE void load_some(const std::byte* from, vi (&bytes)[V]) {
#if defined(CHINCHILLA_VBMI)
    if constexpr (Some == 16) bytes[0] = (vi)_mm512_zextsi128_si512(load<__m128i>(from));
    if constexpr (Some == 32) bytes[0] = (vi)_mm512_zextsi256_si512(load<__m256i>(from));
#else
    __builtin_memcpy(bytes, from, Some);
#endif
}

// A panel's 64 bytes of 4 inputs, stored as value + 128: where the mask has a bit the next one of `values`, else zero.
INLINE void spread_over(std::uint64_t mask, const vi (&values)[V], vi (&bytes)[V]) {
#if defined(CHINCHILLA_VBMI)
    bytes[0] = (vi)_mm512_mask_expand_epi8(_mm512_set1_epi8(-128), mask, (__m512i)values[0]);
#else
    std::byte room[64];
    __builtin_memset(room, 128, sizeof room);
    const std::byte* next = reinterpret_cast<const std::byte*>(values);
    for (; mask; mask &= mask - 1) room[__builtin_ctzll(mask)] = *next++;
    for (int i = 0; i < V; ++i) bytes[i] = load<vi>(room + 4 * L * i);
#endif
}
