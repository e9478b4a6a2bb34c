#include "packing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace chinchilla {

namespace {

constexpr int kBlock = 32, kBlockBytes = 34;  // of Q8_0
constexpr int kInputs = 32;                   // that bfloat16 is padded to

float from_half(std::uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    float size;
    if (exponent == 31) {
        size = mantissa ? std::nanf("") : INFINITY;
    } else {
        size = std::ldexp(static_cast<float>(exponent ? mantissa + 1024 : mantissa), (exponent ? exponent : 1) - 25);
    }
    return half >> 15 ? -size : size;
}

std::uint32_t to_bf16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
    return value == value ? rounded : 0x7fc0U;
}

}  // namespace

void decode_q8_0(const std::uint8_t* blocks, std::size_t count, float* y) {
    for (std::size_t i = 0; i < count; ++i, blocks += kBlockBytes, y += kBlock) {
        std::uint16_t half;
        std::memcpy(&half, blocks, 2);
        const float scale = from_half(half);
        for (int k = 0; k < kBlock; ++k) y[k] = scale * static_cast<float>(static_cast<std::int8_t>(blocks[2 + k]));
    }
}

void pack_bf16(const float* x, int rows, int inputs, std::uint16_t* y) {
    const int padded = round_up(inputs, kInputs), whole = inputs / 2 * 2;
    for (int row = 0; row < rows; row += kLanes, y += static_cast<std::size_t>(kLanes) * padded) {
        const int lanes = std::min(kLanes, rows - row);
        if (lanes < kLanes || whole < padded) std::fill_n(y, static_cast<std::size_t>(kLanes) * padded, std::uint16_t{0});
        for (int lane = 0; lane < lanes; ++lane) {
            const float* from = x + static_cast<std::size_t>(row + lane) * inputs;
            std::uint16_t* to = y + 2 * lane;
            for (int k = 0; k < whole; k += 2, to += 2 * kLanes) {
                const std::uint32_t pair = to_bf16(from[k]) | to_bf16(from[k + 1]) << 16;
                std::memcpy(to, &pair, 4);
            }
            if (whole < inputs) *to = static_cast<std::uint16_t>(to_bf16(from[whole]));
        }
    }
}

void nearest_entries(const float* x, std::size_t count, int dims, const float* book, int entries, std::uint8_t* codes) {
    // The least |c|² / 2 - x · c. Eight entries at a time, whose least so far and its block are kept lane by lane.
    constexpr int kSome = 8;
    float halves[256] = {};
    for (int d = 0; d < dims; ++d) {
        for (int e = 0; e < entries; ++e) halves[e] += 0.5F * book[d * entries + e] * book[d * entries + e];
    }
    for (std::size_t i = 0; i < count; ++i, x += dims) {
        float least[kSome];
        int block[kSome] = {};
        std::fill_n(least, kSome, INFINITY);
        for (int e = 0; e < entries; e += kSome) {
            float some[kSome];
            for (int j = 0; j < kSome; ++j) some[j] = halves[e + j];
            for (int d = 0; d < dims; ++d) {
                for (int j = 0; j < kSome; ++j) some[j] -= x[d] * book[d * entries + e + j];
            }
            for (int j = 0; j < kSome; ++j) {
                const bool nearer = some[j] < least[j];
                least[j] = nearer ? some[j] : least[j];
                block[j] = nearer ? e : block[j];
            }
        }
        int found = 0;
        for (int j = 1; j < kSome; ++j) {
            if (least[j] < least[found] || (least[j] == least[found] && block[j] + j < block[found] + found)) found = j;
        }
        codes[i] = static_cast<std::uint8_t>(block[found] + found);
    }
}

}  // namespace chinchilla
