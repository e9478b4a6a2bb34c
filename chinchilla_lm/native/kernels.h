// What the engine calls: a table of functions for one instruction set, and the one layout of packed weights.
//
// A matrix of N outputs × K inputs is cut into panels of 16 outputs. Within a panel the 16 outputs are the lanes of a
// vector and K is walked in steps, so a product needs no sum across lanes, a panel is one forward stream of bytes, and
// the same bytes are what AMX takes for its right-hand tile:
//
//   f32    [K][16]                              a step is 1 input
//   bf16   [K/2][16][2]                         2 inputs
//   int8   scales, then [K/4][16][4]            4 inputs, stored as value + 128 (VNNI wants one operand unsigned)
//   int4   scales, minima, then [K/8][16][4]    8 inputs, stored as value + 8, or value with minima: the low nibbles of
//                                               the bytes are inputs 0 … 3, the high ones 4 … 7
//   codes  scales, then codes of a codebook, or masks and what they keep: pack/codes.py
//
// Scales are float16 [K/group][16], minima likewise where there are any; int8 without groups has 16 float scales.
//
// K is padded with zeros to 64 bytes of inputs (int4: to 64 inputs, or a group if that is more), N to 16 with zero rows.
// Every part of a panel starts on 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace chinchilla {

constexpr int kLanes = 16;           // outputs of a panel
constexpr int kTally = 3 * kLanes;   // floats of a tally
constexpr int kMostInputs = 1 << 17;  // of a matrix: sums of so many products of bytes have room in 32 bits

enum class Format : int { f32, bf16, int8, int4, codes };
enum class Activation : int { gelu, gelu_tanh, relu, silu, tanh };

// Always inline: kernels.cpp is compiled for several instruction sets, and the linker keeps one copy of what is not.
#define CHINCHILLA_INLINE inline __attribute__((always_inline))

template <class T>
CHINCHILLA_INLINE constexpr T round_up(T value, T step) {
    return (value + step - 1) / step * step;
}

// A packed matrix; it owns nothing.
struct Matrix {
    Format format = Format::f32;
    int outputs = 0, inputs = 0;  // N and K, without padding
    int group = 0;                // int8, int4, codes: inputs that share a scale; 0: all of a row do (int8)
    bool asymmetric = false;      // int4: with minima
    bool unscaled = false;        // int8 with groups: of inputs alone, the weights are integers (a cache's values)
    int bits = 0, dims = 1;       // codes: of a code, and weights that it stands for
    int kept = 0;                 // codes: of 64 weights, by a mask; 0: all
    bool row_scales = false;      // codes: all of a row share one, their inputs still do not
    const std::byte* front = nullptr;  // codes: the codebook, in front of the panels
    const std::byte* data = nullptr;   // the panels
    const float* bias = nullptr;  // [panels() · 16] or none
    std::size_t pitch = 0;        // bytes from panel to panel where that is more than stride(): a cache's values

    CHINCHILLA_INLINE int panels() const { return (outputs + kLanes - 1) / kLanes; }
    CHINCHILLA_INLINE int padded() const {  // inputs with padding
        if (format == Format::f32) return round_up(inputs, 16);
        if (format == Format::bf16) return round_up(inputs, 32);
        return round_up(inputs, group > 64 ? group : 64);
    }
    CHINCHILLA_INLINE int groups() const { return group ? padded() / group : 1; }
    CHINCHILLA_INLINE std::size_t row_bytes() const {  // of a prepared row of inputs
        return static_cast<std::size_t>(padded()) * (format == Format::f32 ? 4 : format == Format::bf16 ? 2 : 1);
    }
    CHINCHILLA_INLINE std::size_t stride() const {  // bytes of a panel
        const std::size_t weights = static_cast<std::size_t>(padded()) * kLanes;
        if (format == Format::f32) return weights * 4;
        if (format == Format::bf16) return weights * 2;
        if (format == Format::codes && kept) return weights / 64 * (8 + static_cast<std::size_t>(kept) * bits / 8) + side();
        if (format == Format::codes) return weights / dims * bits / 8 + side();
        return (format == Format::int8 ? weights : weights / 2) + side() * (asymmetric ? 2 : 1);
    }
    CHINCHILLA_INLINE std::size_t side() const {  // bytes of a panel's scales, and of its minima if any
        if (unscaled) return 0;
        if (row_scales && format == Format::codes) return 64;
        return group ? round_up<std::size_t>(static_cast<std::size_t>(groups()) * 32, 64) : 64;
    }
    CHINCHILLA_INLINE std::size_t front_bytes() const {  // of the codebook, whose tables have at least 16 entries
        if (format != Format::codes || (kept && bits == 8)) return 0;
        return round_up<std::size_t>(static_cast<std::size_t>(dims) << (bits < 4 ? 4 : bits), 64);
    }
    CHINCHILLA_INLINE std::size_t bytes() const { return front_bytes() + stride() * static_cast<std::size_t>(panels()); }
};

// Rows of inputs in the format that a matrix multiplies: float, bf16, or int8 with a scale and a sum for each group.
struct Input {
    std::byte* data = nullptr;
    std::size_t stride = 0;        // bytes from row to row, a multiple of 64
    float* scales = nullptr;       // int8, int4: [rows][groups]
    std::int32_t* sums = nullptr;  // int8, int4: [rows][groups], of the rounded inputs
    float* totals = nullptr;       // the same times the scales
};

struct Norm {
    bool present = false, rms = false;
    float eps = 0.0F;
    const float* weight = nullptr;  // [size] or none
    const float* bias = nullptr;    // [size] or none
};

// One instruction set. All pointers are to distinct memory; rows are `stride` elements apart.
struct Kernels {
    const char* name;

    // y[row][output] = Σ w x (+ bias), or += with `add`, for panels [first, first + panels) into y's columns 0 ….
    void (*multiply)(const Matrix&, const Input&, int row, int rows, int first, int panels, float* y,
                     std::size_t y_stride, bool add);
    // Inputs [from, to) of row `row`, whose floats are at x; what is behind the matrix's inputs becomes 0. `from` is a
    // multiple of 64 and of the group, `to` is too or is padded(); all of a row at once where it has one scale.
    void (*prepare)(const Matrix&, const float* x, const Input&, int row, int from, int to);
    // One row of a matrix, its inputs as floats: an embedding that is also the decoder.
    void (*unpack_row)(const Matrix&, int output, float* y);

    void (*norm)(const Norm&, const float* x, float* y, int size);  // y may be x
    void (*activate)(Activation, float* x, int count);
    // y[i] = act(gate[i]) · up[i], where 16 gates and 16 ups alternate in x.
    void (*gate)(Activation, const float* x, float* y, int count);
    // x += factor · bias over [from, to), and what stands around it within 16 lanes changes too.
    void (*shift)(const float* bias, float factor, float* x, int from, int to);
    // x = softmax(x · scale) over [from, to), 0 elsewhere in [0, padded). Where it is asked for, weight becomes
    // log Σ exp(x · scale).
    void (*softmax)(float* x, int from, int to, int padded, float scale, float* weight);
    // Counts x[0, count) in a tally of Σ e^x: of each lane the largest yet, Σ e^(x - largest), and by how much that sum is
    // too large through rounding (Kahan 1965). NaN where something is not finite. Begins with the lowest number and 0.
    void (*tally)(const float* x, int count, float* tally);
    // x *= weights over [from, to), which is within what softmax left other than 0.
    void (*weigh)(const float* weights, float* x, int from, int to);
    // One position's features into a cache's packed values: panels of 16 features, `pitch` bytes apart. Returns what
    // the integers are to be multiplied by; 1 where there are none.
    float (*put_value)(Format, const float* x, std::byte* panels, std::size_t pitch, int size, int position);
    // Rotates the first and second half of a head's features against each other.
    void (*rotate)(float* x, const float* cosine, const float* sine, int half);
    void (*add)(const float* x, float* y, int count);  // y += x
    // x *= sigmoid(gate), of whole vectors of 16.
    void (*open)(const float* gate, float* x, int count);
    // One token of the gated delta rule: a memory [keys][values], values a multiple of 16, forgets all but `decay` of
    // itself and writes what it does not know yet of `value` for `key`; y is what it then knows for `query`.
    void (*delta)(float* memory, const float* query, const float* key, const float* value, float* y, float decay,
                  float write, int keys, int values);
    // x = x · scale, or with a cap above 0 cap · tanh(x · scale / cap), of whole vectors of 16.
    void (*cap)(float* x, int count, float scale, float cap);
    // The index of the largest of x[0, count), the first of several; of the first NaN where there is one.
    int (*largest)(const float* x, int count);
    // Of 16 · panels lanes, those where x + reach · sizes is not below `limit`: sets the flags of their panels, leaves the
    // others as they are, and returns how many lanes there are.
    int (*within)(const float* x, const float* sizes, float reach, float limit, int panels, std::uint8_t* flags);
};

// The best set that this CPU has, or the one that is named (portable, avx2, avxvnni, avx512, avx512bf16, amx).
// nullptr where the CPU, or this build, does not have it.
const Kernels* kernels_of(const char* name);
const char* const* kernel_names();  // those that can run here, best first, ended by nullptr

}  // namespace chinchilla
