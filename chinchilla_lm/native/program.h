// A program: the chain as a flat list of operations with packed weights. It owns none of the weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace chinchilla {

// Rows of floats or bfloat16, one after another: an embedding that is no matrix.
struct Table {
    Format format = Format::f32;
    int rows = 0, size = 0;
    const std::byte* data = nullptr;
};

struct Embedding {
    Table tokens;             // or, where it has no rows, `tied`
    bool tied = false;        // to the head's output matrix
    Table positions, segments;
    int position_offset = 0;  // row of the first position
    float scale = 1.0F;
    Norm norm;
    int size = 0;             // features of a row
    bool project_present = false;
    Matrix project;           // to the hidden features, where a row has others
};

// What each head adds to a score for the distance from the query's position to the key's: floats, a row a head, its
// middle at distance 0. One table for all attentions; without heads there is none.
struct Relative {
    int heads = 0, positions = 0;  // distances 1 - positions … positions - 1
    const float* data = nullptr;
    // Floats of a row: kernels read up to a vector behind the last distance.
    std::size_t pitch() const { return round_up<std::size_t>(2 * static_cast<std::size_t>(positions) + kLanes, kLanes); }
    // The bias of a query's head on the keys from position 0 on.
    const float* of(int head, int query) const { return data + head * pitch() + positions - 1 - query; }
};

// Which row of their embeddings the distances from query to key have, from that of 1 - positions on; the rows grow with
// the distance. Without positions there are none, and no operation has `on_keys` or `on_queries`.
struct Distances {
    int positions = 0, count = 0;    // count: rows of a head, with their padding to whole panels
    std::vector<std::int32_t> rows;  // [2 · positions - 1]
    const std::int32_t* at(int distance) const { return rows.data() + positions - 1 + distance; }
};

// Where a link's norm stands. pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + after(f(norm(x))); output:
// x + after(f(x)).
enum class Placement : int { pre, post, sandwich, output };

// How far a head's first features turn a position, in radians. A text of more than `switch_at` tokens, if that is above
// 0, turns by `longer` from its first token on. Cosine and sine are multiplied by `scale`.
struct Rope {
    std::vector<float> frequencies, longer;
    int switch_at = 0;
    float scale = 1.0F;
};

enum class Kind : int { attention, delta, mlp, norm };

struct Operation {
    std::string name;  // the link's
    Kind kind = Kind::norm;
    Placement placement = Placement::pre;
    Norm norm, after;
    Matrix first, second;  // qkv and out, or up and down; of delta query, key, value, gate, write and forget, and out
    float residual_scale = 1.0F;  // of f, before the sum
    // attention
    int heads = 0, kv_heads = 0, head_dim = 0;
    Norm query_norm, key_norm;
    bool whole_norms = false;  // over all heads together
    bool norms_last = false;   // behind the rotation; not with the former
    int rope = -1;    // index into Program::ropes; -1: none
    int window = 0;   // positions that a token sees, itself included; 0: all
    float scale = 1.0F;
    float softcap = 0.0F;  // scores s become softcap · tanh(s / softcap) before the mask; 0: they do not
    // DeBERTa: what embeddings of distances are as keys (of a query) and as queries (of a key), the rows of one head
    // behind those of another, in the format of the cache.
    bool on_keys_present = false, on_queries_present = false;
    Matrix on_keys, on_queries;
    int slot = -1;    // of the cache; of delta too
    bool gated_heads = false;  // what heads saw is multiplied by the sigmoid of gates, which stand behind the values
    // delta
    int key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0, kernel = 0;
    const float* conv = nullptr;                    // [features of query, key and value][kernel]
    const float *decay = nullptr, *step = nullptr;  // [value_heads]
    Norm head_norm;                                 // of a head's values
    // mlp
    bool gated = false;
    Activation activation = Activation::gelu;
};

enum class Pooling : int { none, first, last, mean };  // none: an output for every position

// A copy of the head's last matrix in fewer bits, and what bounds how far its outputs are from the matrix's own
// (screen.cpp). K inputs, which it takes by other axes: the first `lead.inputs` axes in one matrix, the others, if there
// are any, in another.
struct Screen {
    bool present = false, rest_present = false;
    Matrix axes, lead, rest;        // axes: [K][K], an axis a row
    const float* center = nullptr;  // [K]: what the rows of the matrix have in common, which the copy lacks
    const float* metric = nullptr;  // [K]: of the axes, in which a residual is measured
    const float* sizes = nullptr;   // [panels() · 16]: of a word; times each of the next two
    float residual = 0.0F;          // what is missing of the copy's row, by the metric
    float length = 0.0F;            // the copy's row
    float stray = 0.0F;             // of any word: what is missing besides, as the axes are not quite orthogonal
    float stretch = 0.0F;           // the most by which the axes lengthen inputs
    float largest = 0.0F, bias = 0.0F;  // of any word: the matrix's row, the magnitude of its bias
};

struct Head {
    Norm norm;       // the model's last one
    Pooling pooling = Pooling::none;
    bool dense_present = false, output_present = false, normalize = false;
    Matrix dense;
    Activation activation = Activation::tanh;
    Norm transform;
    Matrix output;
    Screen screen;  // of `output`
    float scale = 1.0F, softcap = 0.0F;  // of its outputs
};

struct Program {
    int hidden = 0, vocabulary = 0, max_positions = 0;
    bool causal = true;
    Format cache = Format::f32;  // of keys and values: f32, bf16 or int8
    Embedding embedding;
    std::vector<Operation> operations;
    Relative relative;
    Distances distances;
    std::vector<Rope> ropes;
    Head head;

    bool remembers() const;  // whether a cache holds what cannot go back
    int output_size() const; // floats of an output row

    // Throws std::invalid_argument where two parts do not fit together.
    void check() const;
};

}  // namespace chinchilla
