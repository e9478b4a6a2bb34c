// The sizes of a packed matrix, which every build of the kernels shares.

#include "kernels.h"

namespace chinchilla {

namespace {

int step_of(const Matrix& w) {
    switch (w.format) {
        case Format::f32: return 16;
        case Format::bf16: return 32;
        case Format::int8:
        case Format::int4: break;
    }
    return w.group > 64 ? w.group : 64;
}

}  // namespace

int Matrix::padded() const { return round_up(inputs, step_of(*this)); }

std::size_t Matrix::row_bytes() const {
    const std::size_t bytes = format == Format::f32 ? 4 : format == Format::bf16 ? 2 : 1;
    return static_cast<std::size_t>(padded()) * bytes;
}

std::size_t Matrix::stride() const {
    const std::size_t weights = static_cast<std::size_t>(padded()) * kLanes;
    if (format == Format::f32) return weights * 4;
    if (format == Format::bf16) return weights * 2;
    const std::size_t side = group ? round_up<std::size_t>(static_cast<std::size_t>(groups()) * 32, 64) : 64;
    return (format == Format::int8 ? weights : weights / 2) + side * (asymmetric ? 2 : 1);
}

}  // namespace chinchilla
