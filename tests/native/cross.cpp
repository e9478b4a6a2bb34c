// A small model with random weights, in each format of the cache, read at once and in pieces, by one thread and by three.
// Prints a few outputs; fails where they differ within one run. See cross.sh.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "engine.h"

using namespace chinchilla;

namespace {

constexpr int kHidden = 64, kHeads = 4, kKeys = 2, kHead = 16, kInner = 80, kWords = 50, kTokens = 37;

std::vector<Buffer> memory;

float drawn() {
    static std::uint32_t state = 1;
    state = state * 1664525U + 1013904223U;
    return static_cast<float>(state >> 8) / (1 << 23) - 1.0F;
}

// Random weights: float32, or int8 with a scale for each row.
Matrix matrix(Format format, int outputs, int inputs) {
    Matrix w;
    w.format = format;
    w.outputs = outputs;
    w.inputs = inputs;
    std::byte* data = memory.emplace_back().reserve(w.bytes());
    for (int output = 0; output < outputs; ++output) {
        std::byte* panel = data + output / kLanes * w.stride();
        const int lane = output % kLanes;
        const float scale = 0.002F;
        if (format == Format::int8) std::memcpy(panel + 4 * lane, &scale, 4);
        for (int k = 0; k < inputs; ++k) {
            const float value = 0.25F * drawn();
            if (format == Format::f32) {
                std::memcpy(panel + 64 * k + 4 * lane, &value, 4);
            } else {
                panel[64 + 64 * (k / 4) + 4 * lane + k % 4] = static_cast<std::byte>(std::lrint(value / scale) + 128);
            }
        }
    }
    w.data = data;
    return w;
}

Program program(Format format, Format cache) {
    Program made;
    made.hidden = kHidden;
    made.vocabulary = kWords;
    made.max_positions = 64;
    made.cache = cache;
    made.embedding.tied = true;
    const Norm norm{true, true, 1e-5F, nullptr, nullptr};
    for (int layer = 0; layer < 2; ++layer) {
        Operation attention;
        attention.name = "attention";
        attention.kind = Kind::attention;
        attention.norm = norm;
        attention.first = matrix(format, (kHeads + 2 * kKeys) * kHead, kHidden);
        attention.second = matrix(format, kHidden, kHeads * kHead);
        attention.heads = kHeads;
        attention.kv_heads = kKeys;
        attention.head_dim = kHead;
        attention.rope = 0;
        attention.window = layer ? 20 : 0;
        attention.scale = 0.25F;
        attention.slot = layer;
        made.operations.push_back(attention);
        Operation mlp;
        mlp.name = "mlp";
        mlp.kind = Kind::mlp;
        mlp.norm = norm;
        mlp.first = matrix(format, 2 * kInner, kHidden);
        mlp.second = matrix(format, kHidden, kInner);
        mlp.gated = true;
        mlp.activation = Activation::silu;
        made.operations.push_back(mlp);
    }
    std::vector<float> angles;
    for (int i = 0; i < kHead / 2; ++i) angles.push_back(std::pow(100.0F, -2.0F * static_cast<float>(i) / kHead));
    made.ropes.push_back(angles);
    made.head.norm = norm;
    made.head.output_present = true;
    made.head.output = matrix(format, kWords, kHidden);
    return made;
}

std::vector<float> read(Engine& engine, const std::vector<std::int32_t>& ids, int piece) {
    Cache cache(engine.program(), kTokens);
    Cache* const caches[] = {&cache};
    const std::size_t stride = round_up(kWords, kLanes);
    std::vector<float> all(ids.size() * stride);
    for (int at = 0; at < kTokens; at += piece) {
        const int counts[] = {std::min(piece, kTokens - at)};
        engine.run({ids.data() + at, static_cast<std::size_t>(counts[0])}, nullptr, counts, caches, Want::all,
                   all.data() + at * stride, stride);
    }
    return all;
}

}  // namespace

int main() {
    std::vector<std::int32_t> ids;
    for (int i = 0; i < kTokens; ++i) ids.push_back(static_cast<std::int32_t>((drawn() + 1.0F) * 0.49F * kWords));
    const struct { Format weights, cache; const char* name; float tolerance; } cases[] = {
        {Format::f32, Format::f32, "f32", 1e-4F}, {Format::f32, Format::bf16, "bf16", 0.02F}, {Format::int8, Format::int8, "int8", 0.1F}};
    for (const auto& one : cases) {
        const Program made = program(one.weights, one.cache);
        Engine alone(made, 1, nullptr), team(made, 3, nullptr);
        const std::vector<float> expected = read(alone, ids, kTokens);
        for (const int piece : {1, 5, kTokens}) {
            const std::vector<float> got = read(team, ids, piece);
            for (std::size_t i = 0; i < got.size(); ++i) {
                if (!(std::fabs(got[i] - expected[i]) < one.tolerance)) {
                    std::printf("%s in pieces of %d: %g where %g is right\n", one.name, piece, got[i], expected[i]);
                    return 1;
                }
            }
        }
        std::printf("%s:", one.name);
        for (int i = 0; i < 8; ++i) std::printf(" %.3f", expected[expected.size() - 64 + i]);
        std::printf("\n");
    }
}
