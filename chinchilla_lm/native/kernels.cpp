// Every kernel, written once over vectors of L lanes and compiled once for each instruction set (CMakeLists.txt).
//
// Nothing here may come from a header that other files include for its code (containers, algorithms): the linker keeps
// one copy of an inline function, and it could keep the one that only a newer CPU can run.

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef CHINCHILLA_ISA
#error "compile this once for each instruction set, with its name in CHINCHILLA_ISA"
#endif
#define STRING_OF(x) #x
#define NAME_OF(x) STRING_OF(x)

namespace chinchilla::CHINCHILLA_ISA {

#include "lanes.h"
#include "bytes.h"
#include "products.h"
#include "rows.h"
#if defined(CHINCHILLA_TILES)
#include "tiles.h"
#include "tiled.h"
constexpr auto multiply_plain = multiply_tiled;
#else
constexpr auto multiply_plain = multiply;
#endif
#include "tables.h"
#include "codes.h"

static void multiply_any(const Matrix& w, const Input& in, int row, int rows, int first, int panels, float* y,
                         std::size_t y_stride, bool add) {
    if (w.format == Format::codes) return multiply_codes(w, in, row, rows, first, panels, {y, y_stride, add}, multiply_plain);
    multiply_plain(w, in, row, rows, first, panels, y, y_stride, add);
}

static void unpack_any(const Matrix& w, int output, float* y) {
    if (w.format == Format::codes) return unpack_codes(w, output, y);
    unpack_row(w, output, y);
}

extern const Kernels kernels;
const Kernels kernels = {NAME_OF(CHINCHILLA_ISA), multiply_any, prepare, unpack_any, norm_row, activate, gate,
                         shift, softmax, tally, weigh, put_value, rotate, add_row, open_row, delta_step, cap_row,
                         largest_at, within};

}  // namespace chinchilla::CHINCHILLA_ISA
