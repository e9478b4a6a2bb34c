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

struct Weights {
    Format format;
    int group;
    bool asymmetric;
};

// Random weights; integers have the same scale everywhere, and the same minimum where there are any.
Matrix matrix(const Weights& of, int outputs, int inputs) {
    constexpr float kScale = 0x1p-9F, kLargest = 0x1p-6F;  // of int8 and of int4
    constexpr std::uint16_t kScaleBits = 0x1800, kLargestBits = 0x2400, kLeastBits = 0xb000;  // as float16; -0.125
    Matrix w;
    w.format = of.format;
    w.outputs = outputs;
    w.inputs = inputs;
    w.group = of.group;
    w.asymmetric = of.asymmetric;
    std::byte* data = memory.emplace_back().reserve(w.bytes());
    const bool four = of.format == Format::int4;
    for (int output = 0; output < w.panels() * kLanes; ++output) {
        std::byte* panel = data + output / kLanes * w.stride();
        const int lane = output % kLanes;
        if (of.format == Format::int8 && !of.group) std::memcpy(panel + 4 * lane, &kScale, 4);
        for (int g = 0; of.group && g < w.groups(); ++g) {
            std::memcpy(panel + 32 * g + 2 * lane, four ? &kLargestBits : &kScaleBits, 2);
            if (of.asymmetric) std::memcpy(panel + w.side() + 32 * g + 2 * lane, &kLeastBits, 2);
        }
        std::byte* words = panel + w.side() * (of.asymmetric ? 2 : 1);
        for (int k = 0; k < inputs && output < outputs; ++k) {
            const float value = 0.25F * drawn();
            if (of.format == Format::f32) {
                std::memcpy(panel + 64 * k + 4 * lane, &value, 4);
            } else if (of.format == Format::int8) {
                words[64 * (k / 4) + 4 * lane + k % 4] = static_cast<std::byte>(std::lrint(value / kScale) + 128);
            } else {
                const float steps = of.asymmetric ? (value + 0.25F) / (2 * kLargest) : value / (2 * kLargest) + 8.0F;
                const int code = static_cast<int>(steps < 0.0F ? 0.0F : steps > 15.0F ? 15.0F : steps);
                words[64 * (k / 8) + 4 * lane + k % 4] |= static_cast<std::byte>(k % 8 < 4 ? code : code << 4);
            }
        }
    }
    w.data = data;
    return w;
}

Program program(const Weights& format, Format cache) {
    Program made;
    made.hidden = kHidden;
    made.vocabulary = kWords;
    made.max_positions = 64;
    made.cache = cache;
    made.embedding.tied = true;
    made.embedding.size = kHidden;
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
    Rope rope;
    for (int i = 0; i < kHead / 2; ++i) {
        rope.frequencies.push_back(std::pow(100.0F, -2.0F * static_cast<float>(i) / kHead));
    }
    made.ropes.push_back(rope);
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
        engine.run({{ids.data() + at, static_cast<std::size_t>(counts[0])}}, counts, caches, Want::all,
                   all.data() + at * stride, stride);
    }
    return all;
}

}  // namespace

int main() {
    std::vector<std::int32_t> ids;
    for (int i = 0; i < kTokens; ++i) ids.push_back(static_cast<std::int32_t>((drawn() + 1.0F) * 0.49F * kWords));
    const struct { Weights weights; Format cache; const char* name; float tolerance; } cases[] = {
        {{Format::f32, 0, false}, Format::f32, "f32", 1e-4F}, {{Format::f32, 0, false}, Format::bf16, "bf16", 0.02F},
        {{Format::int8, 0, false}, Format::int8, "int8-row", 0.1F}, {{Format::int8, 64, false}, Format::int8, "int8", 0.1F},
        {{Format::int4, 32, true}, Format::int8, "int4", 0.1F}, {{Format::int4, 64, false}, Format::int8, "int4-sym", 0.1F}};
    for (const auto& one : cases) {
        const Program made = program(one.weights, one.cache);
        for (const char* const* isa = kernel_names(); *isa; ++isa) {
            Engine alone(made, 1, *isa), team(made, 3, *isa);
            const std::vector<float> expected = read(alone, ids, kTokens);
            for (const int piece : {1, 5, kTokens}) {
                const std::vector<float> got = read(team, ids, piece);
                for (std::size_t i = 0; i < got.size(); ++i) {
                    if (!(std::fabs(got[i] - expected[i]) < one.tolerance)) {
                        std::printf("%s, %s in pieces of %d: %g where %g is right\n", *isa, one.name, piece, got[i], expected[i]);
                        return 1;
                    }
                }
            }
            std::printf("%s %s:", *isa, one.name);
            for (int i = 0; i < 8; ++i) std::printf(" %.3f", expected[expected.size() - 64 + i]);
            std::printf("\n");
        }
    }
}
