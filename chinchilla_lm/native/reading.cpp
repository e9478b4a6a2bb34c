#include "reading.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <utility>

namespace nb = nanobind;

namespace chinchilla {

namespace {

constexpr int kMostTaps = 64;  // of a convolution
constexpr int kMost = 1 << 28;  // of any size in a header: products of two of them fit 64 bits

[[noreturn]] void refuse(const std::string& key, const std::string& rule) {
    throw std::invalid_argument("program: " + key + " " + rule);
}

template <class T>
T get(const nb::dict& from, const char* key) {
    if (!from.contains(key)) refuse(key, "is missing");
    T value;
    if (!nb::try_cast<T>(from[key], value)) refuse(key, "has a value of the wrong type");
    return value;
}

int size(const nb::dict& from, const char* key, int least = 0) {
    const auto value = get<long long>(from, key);
    if (value < least || value > kMost) refuse(key, "is " + std::to_string(value) + ", not in " + std::to_string(least) + " … " + std::to_string(kMost));
    return static_cast<int>(value);
}

bool has(const nb::dict& from, const char* key) { return from.contains(key) && !from[key].is_none(); }

template <class E, std::size_t N>
E named(const std::string& value, const std::pair<const char*, E> (&names)[N]) {
    for (const auto& [name, one] : names) {
        if (value == name) return one;
    }
    throw std::invalid_argument("program: '" + value + "' is not one of those that this engine knows");
}

const std::byte* bytes_at(const nb::dict& from, const char* key, std::size_t count, std::span<const std::byte> data) {
    const auto offset = get<long long>(from, key);
    if (offset < 0 || offset % 64 || static_cast<unsigned long long>(offset) > data.size() || data.size() - offset < count) {
        refuse(key, "points outside the program's bytes, or not to a multiple of 64");
    }
    return data.data() + offset;
}

Format format_of(const nb::dict& from) {
    return named<Format>(get<std::string>(from, "format"),
                         {{"f32", Format::f32}, {"bf16", Format::bf16}, {"int8", Format::int8}, {"int4", Format::int4}, {"codes", Format::codes}});
}

// A vector of floats that kernels read in whole panels: its bytes are padded to 16 floats.
const float* vector_at(const nb::dict& from, const char* key, int count, std::span<const std::byte> data) {
    if (!has(from, key)) return nullptr;
    return reinterpret_cast<const float*>(bytes_at(from, key, 4 * static_cast<std::size_t>(round_up(count, kLanes)), data));
}

Norm norm_in(const nb::dict& from, const char* key, int count, std::span<const std::byte> data) {
    Norm norm;
    if (!has(from, key)) return norm;
    const auto inside = get<nb::dict>(from, key);
    norm.present = true;
    norm.rms = get<bool>(inside, "rms");
    norm.eps = get<float>(inside, "eps");
    norm.weight = vector_at(inside, "weight", count, data);
    norm.bias = vector_at(inside, "bias", count, data);
    return norm;
}

Table table_in(const nb::dict& from, const char* key, std::span<const std::byte> data) {
    Table table;
    if (!has(from, key)) return table;
    const auto inside = get<nb::dict>(from, key);
    table.format = format_of(inside);
    if (table.format != Format::f32 && table.format != Format::bf16) refuse(key, "is neither f32 nor bf16");
    table.rows = size(inside, "rows", 1);
    table.size = size(inside, "size", 1);
    const std::size_t width = table.format == Format::f32 ? 4 : 2;
    table.data = bytes_at(inside, "offset", width * table.rows * table.size, data);
    return table;
}

Matrix matrix_in(const nb::dict& from, const char* key, std::span<const std::byte> data) {
    return read_matrix(get<nb::dict>(from, key), data);
}

// Floats of a norm of queries or of keys: of one head, or of all together.
int norm_size(const Operation& op, int heads) {
    const long long all = op.whole_norms ? static_cast<long long>(heads) * op.head_dim : op.head_dim;
    if (all > kMost) refuse("heads", "have " + std::to_string(all) + " features, more than " + std::to_string(kMost));
    return static_cast<int>(all);
}

void read_delta(const nb::dict& from, std::span<const std::byte> data, Operation& op) {
    op.key_heads = size(from, "key_heads", 1);
    op.value_heads = size(from, "value_heads", 1);
    op.key_dim = size(from, "key_dim", 1);
    op.value_dim = size(from, "value_dim", 1);
    op.kernel = size(from, "kernel", 1);
    const long long most = kMostInputs;  // of features, as the matrices' sizes have it
    const long long features = 2LL * op.key_heads * op.key_dim + static_cast<long long>(op.value_heads) * op.value_dim;
    if (features > 3 * most || op.kernel > kMostTaps) refuse("kernel", "or the features that it is for are too many");
    op.conv = vector_at(from, "conv", static_cast<int>(features) * op.kernel, data);
    op.decay = vector_at(from, "decay", op.value_heads, data);
    op.step = vector_at(from, "step", op.value_heads, data);
    op.head_norm = norm_in(from, "head_norm", op.value_dim, data);
}

Rope read_rope(const nb::dict& from) {
    Rope rope;
    rope.frequencies = get<std::vector<float>>(from, "frequencies");
    if (has(from, "longer")) rope.longer = get<std::vector<float>>(from, "longer");
    rope.switch_at = size(from, "switch");
    rope.scale = get<float>(from, "scale");
    return rope;
}

Operation read_operation(const nb::dict& from, int hidden, int slot, std::span<const std::byte> data) {
    Operation op;
    op.name = get<std::string>(from, "name");
    op.kind = named<Kind>(get<std::string>(from, "kind"),
                          {{"attention", Kind::attention}, {"delta", Kind::delta}, {"mlp", Kind::mlp}, {"norm", Kind::norm}});
    op.norm = norm_in(from, "norm", hidden, data);
    if (op.kind == Kind::norm) return op;
    op.placement = named<Placement>(get<std::string>(from, "placement"), {{"pre", Placement::pre},
                                                                          {"post", Placement::post},
                                                                          {"sandwich", Placement::sandwich},
                                                                          {"output", Placement::output}});
    op.after = norm_in(from, "after", hidden, data);
    op.first = matrix_in(from, "first", data);
    op.second = matrix_in(from, "second", data);
    op.residual_scale = get<float>(from, "residual_scale");
    if (op.kind == Kind::mlp) {
        op.gated = get<bool>(from, "gated");
        op.activation = read_activation(get<std::string>(from, "activation"));
        return op;
    }
    op.slot = slot;
    if (op.kind == Kind::delta) {
        read_delta(from, data, op);
        return op;
    }
    op.gated_heads = get<bool>(from, "gated_heads");
    op.heads = size(from, "heads", 1);
    op.kv_heads = size(from, "kv_heads", 1);
    op.head_dim = size(from, "head_dim", 1);
    op.whole_norms = get<bool>(from, "whole_norms");
    op.norms_last = get<bool>(from, "norms_last");
    op.query_norm = norm_in(from, "query_norm", norm_size(op, op.heads), data);
    op.key_norm = norm_in(from, "key_norm", norm_size(op, op.kv_heads), data);
    op.rope = has(from, "rope") ? size(from, "rope") : -1;
    op.window = size(from, "window");
    op.scale = get<float>(from, "scale");
    op.softcap = get<float>(from, "softcap");
    op.on_keys_present = has(from, "on_keys");
    op.on_queries_present = has(from, "on_queries");
    if (op.on_keys_present) op.on_keys = matrix_in(from, "on_keys", data);
    if (op.on_queries_present) op.on_queries = matrix_in(from, "on_queries", data);
    return op;
}

Distances read_distances(const nb::dict& header) {
    Distances distances;
    if (!has(header, "distances")) return distances;
    const auto from = get<nb::dict>(header, "distances");
    distances.count = size(from, "count", kLanes);
    distances.rows = get<std::vector<std::int32_t>>(from, "rows");
    if (distances.rows.size() % 2 == 0 || distances.rows.size() > kMost) refuse("rows", "are not one for each distance");
    distances.positions = static_cast<int>(distances.rows.size() / 2) + 1;
    return distances;
}

Relative read_relative(const nb::dict& header, std::span<const std::byte> data) {
    Relative relative;
    if (!has(header, "relative")) return relative;
    const auto from = get<nb::dict>(header, "relative");
    relative.heads = size(from, "heads", 1);
    relative.positions = size(from, "positions", 1);
    const std::size_t count = relative.pitch() * static_cast<std::size_t>(relative.heads);
    relative.data = reinterpret_cast<const float*>(bytes_at(from, "offset", 4 * count, data));
    return relative;
}

const float* needed_vector_at(const nb::dict& from, const char* key, int count, std::span<const std::byte> data) {
    const float* found = vector_at(from, key, count, data);
    if (!found) refuse(key, "is missing");
    return found;
}

Screen read_screen(const nb::dict& from, const Matrix& w, std::span<const std::byte> data) {
    Screen screen;
    screen.present = true;
    screen.axes = matrix_in(from, "axes", data);
    screen.lead = matrix_in(from, "lead", data);
    screen.rest_present = has(from, "rest");
    if (screen.rest_present) screen.rest = matrix_in(from, "rest", data);
    screen.center = needed_vector_at(from, "center", w.inputs, data);
    screen.metric = needed_vector_at(from, "metric", w.inputs, data);
    screen.sizes = needed_vector_at(from, "sizes", w.outputs, data);
    screen.residual = get<float>(from, "residual");
    screen.length = get<float>(from, "length");
    screen.stray = get<float>(from, "stray");
    screen.stretch = get<float>(from, "stretch");
    screen.largest = get<float>(from, "largest");
    screen.bias = get<float>(from, "bias");
    return screen;
}

Head read_head(const nb::dict& from, int hidden, std::span<const std::byte> data) {
    Head head;
    head.norm = norm_in(from, "norm", hidden, data);
    head.pooling = named<Pooling>(get<std::string>(from, "pooling"), {{"none", Pooling::none},
                                                                      {"first", Pooling::first},
                                                                      {"last", Pooling::last},
                                                                      {"mean", Pooling::mean}});
    head.normalize = get<bool>(from, "normalize");
    if (has(from, "dense")) {
        head.dense_present = true;
        head.dense = matrix_in(from, "dense", data);
        head.activation = read_activation(get<std::string>(from, "activation"));
    }
    head.transform = norm_in(from, "transform", head.dense_present ? head.dense.outputs : hidden, data);
    if (has(from, "output")) {
        head.output_present = true;
        head.output = matrix_in(from, "output", data);
        if (has(from, "screen")) head.screen = read_screen(get<nb::dict>(from, "screen"), head.output, data);
    }
    if (!head.output_present && has(from, "screen")) refuse("screen", "is of a head without outputs");
    head.scale = get<float>(from, "scale");
    head.softcap = get<float>(from, "softcap");
    return head;
}

}  // namespace

Activation read_activation(const std::string& name) {
    return named<Activation>(name, {{"gelu", Activation::gelu},
                                    {"gelu_tanh", Activation::gelu_tanh},
                                    {"relu", Activation::relu},
                                    {"silu", Activation::silu},
                                    {"tanh", Activation::tanh}});
}

namespace {

void read_codes(const nb::dict& from, Matrix& w) {
    w.bits = size(from, "bits", 1);
    w.dims = size(from, "dims", 1);
    w.kept = size(from, "kept");
    w.group = size(from, "group", 1);
    w.row_scales = get<bool>(from, "row_scales");
    if (w.group != 64 && w.group != 128) refuse("group", "is not 64 or 128");
    if (w.bits > 8 || w.dims > 4) refuse("bits", "and dims are none that this engine knows");
    const int kind = 10 * w.bits + w.dims;  // of one pair of digits each
    if (w.kept) {
        const bool known = (w.kept == 32 && (kind == 81 || kind == 41)) || (w.kept == 16 && kind == 41);
        if (!known) refuse("kept", "is none that this engine knows, with these bits");
        if (w.row_scales) refuse("row_scales", "is true where masks keep weights");
    } else if (kind != 31 && kind != 41 && kind != 42 && kind != 62 && kind != 82 && kind != 84) {
        refuse("bits", "and dims are none that this engine knows");
    }
}

}  // namespace

Matrix read_matrix(const nb::dict& from, std::span<const std::byte> data) {
    Matrix w;
    w.format = format_of(from);
    w.outputs = size(from, "outputs", 1);
    w.inputs = size(from, "inputs", 1);
    if (w.inputs > kMostInputs) refuse("inputs", "are more than " + std::to_string(kMostInputs));
    if (w.format == Format::int4 || w.format == Format::int8) {
        w.group = size(from, "group", 0);
        const bool row = w.group == 0 && w.format == Format::int8;
        if (!row && w.group != 32 && w.group != 64 && w.group != 128) refuse("group", "is not 32, 64 or 128");
        w.asymmetric = get<bool>(from, "asymmetric");
        if (w.asymmetric && w.format == Format::int8) refuse("asymmetric", "is true of int8, which has no minima");
    }
    if (w.format == Format::codes) read_codes(from, w);
    w.front = bytes_at(from, "offset", w.bytes(), data);
    w.data = w.front + w.front_bytes();
    w.bias = vector_at(from, "bias", w.outputs, data);
    return w;
}

Program read_program(const nb::dict& header, std::span<const std::byte> data) {
    Program program;
    program.hidden = size(header, "hidden", 1);
    program.vocabulary = size(header, "vocabulary", 1);
    program.max_positions = size(header, "max_positions", 1);
    program.causal = get<bool>(header, "causal");
    program.cache = named<Format>(get<std::string>(header, "cache"), {{"f32", Format::f32}, {"bf16", Format::bf16}, {"int8", Format::int8}});
    const auto embedding = get<nb::dict>(header, "embedding");
    program.embedding.tokens = table_in(embedding, "tokens", data);
    program.embedding.tied = !program.embedding.tokens.rows;
    program.embedding.positions = table_in(embedding, "positions", data);
    program.embedding.segments = table_in(embedding, "segments", data);
    program.embedding.position_offset = size(embedding, "position_offset");
    program.embedding.scale = get<float>(embedding, "scale");
    program.embedding.size = size(embedding, "size", 1);
    program.embedding.norm = norm_in(embedding, "norm", program.embedding.size, data);
    if (has(embedding, "project")) {
        program.embedding.project_present = true;
        program.embedding.project = matrix_in(embedding, "project", data);
    }
    program.relative = read_relative(header, data);
    program.distances = read_distances(header);
    for (const nb::handle one : get<nb::list>(header, "ropes")) {
        nb::dict from;
        if (!nb::try_cast<nb::dict>(one, from)) refuse("ropes", "holds something that is none");
        program.ropes.push_back(read_rope(from));
    }
    int slot = 0;
    for (const nb::handle one : get<nb::list>(header, "operations")) {
        nb::dict from;
        if (!nb::try_cast<nb::dict>(one, from)) refuse("operations", "holds something that is none");
        program.operations.push_back(read_operation(from, program.hidden, slot, data));
        slot += program.operations.back().slot >= 0;
    }
    program.head = read_head(get<nb::dict>(header, "head"), program.hidden, data);
    program.check();
    return program;
}

}  // namespace chinchilla
