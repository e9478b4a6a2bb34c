// The gated delta rule: a head remembers one matrix from keys to values instead of all keys and values (models/delta.py).
//
// Heads that share a key are independent of all others, from the convolution to the output, so each is one member's, and
// reads its tokens one after another. What a cache holds of such a group, all of it floats:
//
//   [kernel − 1][features]                  the last inputs of the convolution: query, key, and the values that share them
//   [values' heads][key_dim][value_dim]     the memories, value_dim padded to 16

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pass.h"

namespace chinchilla {

namespace {

int shared_by(const Operation& op) { return op.value_heads / op.key_heads; }
int features_of(const Operation& op) { return 2 * op.key_dim + shared_by(op) * op.value_dim; }
int padded_values(const Operation& op) { return round_up(op.value_dim, kLanes); }
std::size_t past_floats(const Operation& op) {
    return round_up<std::size_t>(static_cast<std::size_t>(op.kernel - 1) * features_of(op), kLanes);
}

float softplus(float x) { return x > 20.0F ? x : std::log1p(std::exp(x)); }

// Brings a vector to length `scale`.
void to_length(float* x, int count, float scale) {
    float total = 1e-6F;
    for (int i = 0; i < count; ++i) total += x[i] * x[i];
    const float factor = scale / std::sqrt(total);
    for (int i = 0; i < count; ++i) x[i] *= factor;
}

}  // namespace

std::size_t memory_floats(const Operation& op) {
    return past_floats(op) + static_cast<std::size_t>(shared_by(op)) * op.key_dim * padded_values(op);
}

void Pass::reserve_delta(const Operation& op) {
    const std::size_t row = round_up<std::size_t>(features_of(op), kLanes) + 4 * padded_values(op) + kLanes;
    for (Scratch& scratch : scratch_) {
        scratch.scores.reserve_of<float>(memory_floats(op));
        scratch.tile.reserve_of<float>(row * 2);
    }
}

void Pass::delta(const Operation& op, const Job& job, Member me) {
    const Input in = inputs(op.first, &op.norm, x_.as(), width_, job.rows, me);
    multiply(op.first, in, job.rows, mid_.as(), wide_, false, me);
    me.meet();
    const int sequences = static_cast<int>(job.sequences.size());
    me.divide(sequences * op.key_heads, 1, job.rows, [&](int begin, int end) {
        for (int item = begin; item < end; ++item) {
            const Sequence& sequence = job.sequences[item / op.key_heads];
            const int head = item % op.key_heads;
            float* memory = scratch_[me.index].scores.as();
            if (sequence.cache) memory = reinterpret_cast<float*>(sequence.cache->slot(op.slot)) + head * memory_floats(op);
            if (!sequence.cache || !sequence.past) std::fill_n(memory, memory_floats(op), 0.0F);
            for (int row = sequence.row; row < sequence.row + sequence.count; ++row) {
                remember(op, head, mid_.as() + row * wide_, seen_.as() + row * wide_, memory, scratch_[me.index].tile.as());
            }
        }
    });
    me.meet();
    join(op, inputs(op.second, nullptr, seen_.as(), wide_, job.rows, me), mid_.as(), job.rows, me);
}

// One token of the heads that share a key: x is its row of the first product, y of what the second is for.
void Pass::remember(const Operation& op, int head, const float* x, float* y, float* memory, float* room) {
    const int keys = op.key_heads * op.key_dim, values = op.value_heads * op.value_dim, shared = shared_by(op);
    const int features = features_of(op), width = padded_values(op);
    // Where the group's query, key and values stand in a row, and so in the convolution's weights.
    const struct {
        int from, count, to;
    } parts[] = {{head * op.key_dim, op.key_dim, 0},
                 {keys + head * op.key_dim, op.key_dim, op.key_dim},
                 {2 * keys + head * shared * op.value_dim, shared * op.value_dim, 2 * op.key_dim}};
    float* mixed = room;
    for (const auto& part : parts) {
        for (int i = 0; i < part.count; ++i) {
            const float* weights = op.conv + static_cast<std::size_t>(part.from + i) * op.kernel;
            float total = weights[op.kernel - 1] * x[part.from + i];
            for (int tap = 0; tap < op.kernel - 1; ++tap) total += weights[tap] * memory[tap * features + part.to + i];
            mixed[part.to + i] = total;
        }
    }
    if (op.kernel > 1) {
        std::memmove(memory, memory + features, static_cast<std::size_t>(op.kernel - 2) * features * sizeof(float));
        float* last = memory + static_cast<std::size_t>(op.kernel - 2) * features;
        for (const auto& part : parts) std::copy_n(x + part.from, part.count, last + part.to);
    }
    k_.activate(Activation::silu, mixed, round_up(features, kLanes));
    to_length(mixed, op.key_dim, 1.0F / std::sqrt(static_cast<float>(op.key_dim)));
    to_length(mixed + op.key_dim, op.key_dim, 1.0F);
    float* told = room + round_up(features, kLanes);
    float *found = told + width, *gate = found + width;
    const float* behind = x + 2 * keys + values;  // gates, what is written, what is forgotten
    for (int s = 0; s < shared; ++s) {
        const int one = head * shared + s;
        std::fill_n(told, width, 0.0F);
        std::copy_n(mixed + 2 * op.key_dim + s * op.value_dim, op.value_dim, told);
        const float write = 1.0F / (1.0F + std::exp(-behind[values + one]));
        const float decay = std::exp(-std::exp(op.decay[one]) * softplus(behind[values + op.value_heads + one] + op.step[one]));
        float* matrix = memory + past_floats(op) + static_cast<std::size_t>(s) * op.key_dim * width;
        k_.delta(matrix, mixed, mixed + op.key_dim, told, found, decay, write, op.key_dim, width);
        k_.norm(op.head_norm, found, found, op.value_dim);
        std::copy_n(behind + one * op.value_dim, op.value_dim, gate);
        k_.activate(Activation::silu, gate, width);
        for (int i = 0; i < op.value_dim; ++i) y[one * op.value_dim + i] = found[i] * gate[i];
    }
}

}  // namespace chinchilla
