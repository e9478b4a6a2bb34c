// What is done to every weight of a large file before it can be multiplied, where NumPy would take a pass for each step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace chinchilla {

// `blocks` blocks of ggml's Q8_0, a float16 scale and 32 integers each, as floats: 32 a block.
void decode_q8_0(const std::uint8_t* blocks, std::size_t count, float* y);

// `rows` rows of `inputs` floats as panels of [K/2][16][2] bfloat16, rounded to the nearest, ties to even (kernels.h); the
// rest of the last panel and inputs up to a multiple of 32 are zeros.
void pack_bf16(const float* x, int rows, int inputs, std::uint16_t* y);

// The entry nearest to each of `count` vectors of `dims` floats, the first of several. book: [dims][entries], entries a
// multiple of 8, at most 256; dims at most 4.
void nearest_entries(const float* x, std::size_t count, int dims, const float* book, int entries, std::uint8_t* codes);

}  // namespace chinchilla
