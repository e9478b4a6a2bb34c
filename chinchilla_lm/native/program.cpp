#include "program.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace chinchilla {

namespace {

void require(bool holds, const std::string& where, const std::string& rule) {
    if (!holds) throw std::invalid_argument(where + ": " + rule);
}

void check_matrix(const Matrix& w, long long outputs, long long inputs, const std::string& where) {
    require(w.data != nullptr, where, "has no weights");
    require(w.outputs == outputs && w.inputs == inputs, where,
            "is " + std::to_string(w.outputs) + " × " + std::to_string(w.inputs) + ", not " + std::to_string(outputs) +
                " × " + std::to_string(inputs));
}

void check_table(const Table& table, int size, const std::string& where) {
    require(table.rows > 0 && table.data != nullptr && table.size == size, where, "does not fit the size of embeddings");
    require(table.format == Format::f32 || table.format == Format::bf16, where, "is neither f32 nor bf16");
}

void check_attention(const Operation& op, const Program& program) {
    require(op.heads > 0 && op.kv_heads > 0 && op.head_dim > 0 && op.heads % op.kv_heads == 0, op.name,
            "key heads do not divide the heads");
    const long long size = op.head_dim;  // what a header says may be large, and its products larger than an int
    const long long parts = (op.gated_heads ? 2LL : 1LL) * op.heads + 2LL * op.kv_heads;
    check_matrix(op.first, parts * size, program.hidden, op.name + ".qkv");
    check_matrix(op.second, program.hidden, op.heads * size, op.name + ".out");
    require(!program.relative.heads || program.relative.heads == op.heads, op.name, "the bias has other heads");
    require(op.window >= 0, op.name, "the window is negative");
    require(op.rope < static_cast<int>(program.ropes.size()), op.name, "there is no such rope");
    if (op.rope >= 0) {
        const std::size_t turned = program.ropes[op.rope].frequencies.size();
        require(turned > 0 && turned <= static_cast<std::size_t>(op.head_dim) / 2, op.name, "the rope turns more than a head has");
    }
    require(!op.whole_norms || !op.norms_last, op.name, "norms over all heads stand behind the rotation");
    require(std::isfinite(op.scale), op.name, "the scale of scores is not a number");
    require(std::isfinite(op.softcap) && op.softcap >= 0, op.name, "the soft cap is not a number from 0");
}

void check_distances(const Operation& op, const Program& program) {
    if (!op.on_keys_present && !op.on_queries_present) return;
    const Distances& distances = program.distances;
    require(distances.positions > 0 && !program.causal, op.name, "there are no distances, or it reads one way");
    require(op.heads == op.kv_heads && op.softcap == 0 && !program.relative.heads, op.name, "its scores are others' too");
    for (const Matrix* w : {op.on_keys_present ? &op.on_keys : nullptr, op.on_queries_present ? &op.on_queries : nullptr}) {
        if (!w) continue;
        check_matrix(*w, static_cast<long long>(op.heads) * distances.count, op.head_dim, op.name + ".distances");
        require(w->format == program.cache && !w->group && !w->bias, op.name, "its distances have another format");
    }
}

// Rows that do not grow with the distance, or lie outside, would be read from outside of what is multiplied.
void check_rows(const Distances& distances, int max_positions) {
    if (!distances.positions) return;
    require(distances.positions >= max_positions, "distances", "have fewer positions than the model");
    require(distances.count % kLanes == 0, "distances", "are no whole panels");
    int before = 0;
    for (const std::int32_t row : distances.rows) {
        require(row >= before && row < distances.count, "distances", "have rows out of order");
        before = row;
    }
}

void check_rope(const Rope& rope, const std::string& where) {
    require(std::isfinite(rope.scale), where, "its scale is not a number");
    require((rope.switch_at > 0) == !rope.longer.empty(), where, "only one of the switch and the longer rope is there");
    require(rope.longer.empty() || rope.longer.size() == rope.frequencies.size(), where, "the longer rope has another size");
}

// Norms that a link's placement needs, and no others.
void check_placement(const Operation& op) {
    const bool inside = op.placement == Placement::sandwich || op.placement == Placement::output;
    require(op.after.present == inside, op.name, "the norm behind the function does not fit the placement");
    require(op.placement != Placement::output || !op.norm.present, op.name, "a norm stands in front of the function");
    require(op.placement != Placement::post || op.residual_scale == 1.0F, op.name, "a post-norm link has a residual scale");
    require(std::isfinite(op.residual_scale), op.name, "the residual scale is not a number");
}

void check_delta(const Operation& op, const Program& program) {
    require(op.key_heads > 0 && op.value_heads > 0 && op.value_heads % op.key_heads == 0, op.name,
            "key heads do not divide the values' heads");
    const long long keys = static_cast<long long>(op.key_heads) * op.key_dim;
    const long long values = static_cast<long long>(op.value_heads) * op.value_dim;
    check_matrix(op.first, 2 * keys + 2 * values + 2LL * op.value_heads, program.hidden, op.name + ".inner");
    check_matrix(op.second, program.hidden, values, op.name + ".out");
    require(op.conv && op.decay && op.step, op.name, "lacks a convolution, a decay or a step");
    require(op.placement == Placement::pre, op.name, "its norm does not stand in front");
}

void check_mlp(const Operation& op, const Program& program) {
    const int inner = op.second.inputs;
    require(inner > 0, op.name, "has no inner features");
    check_matrix(op.first, op.gated ? 2LL * round_up(inner, kLanes) : inner, program.hidden, op.name + ".up");
    check_matrix(op.second, program.hidden, inner, op.name + ".down");
}

bool all_from_0(const float* values, int count) {
    return std::all_of(values, values + count, [](float one) { return std::isfinite(one) && one >= 0; });
}

// The bound of screen.cpp holds for numbers that are finite, for sums without minima, and for scales that keep an order.
void check_screen(const Screen& screen, const Head& head) {
    if (!screen.present) return;
    const std::string where = "head.screen";
    const Matrix& w = head.output;
    require(head.pooling == Pooling::none, where, "is of a head that pools");
    require(w.format != Format::int4 && w.format != Format::codes, where, "is of a head in 4 bits or fewer");
    require(head.softcap == 0 && head.scale >= 1e-3F && head.scale <= 1e3F, where, "is of a head with a soft cap, or scaled too far");
    const int lead = screen.lead.inputs;
    require(lead <= w.inputs && screen.rest_present == (lead < w.inputs), where, "does not have all inputs");
    require(lead % kLanes == 0 || !screen.rest_present, where, "is parted within a vector");
    check_matrix(screen.axes, w.inputs, w.inputs, where + ".axes");
    check_matrix(screen.lead, w.outputs, lead, where + ".lead");
    if (screen.rest_present) check_matrix(screen.rest, w.outputs, w.inputs - lead, where + ".rest");
    require(!screen.lead.asymmetric && !screen.rest.asymmetric && !screen.axes.asymmetric, where, "has minima");
    require(!screen.axes.bias && !screen.rest.bias && screen.lead.bias == w.bias, where, "does not have the head's bias");
    require(std::all_of(screen.center, screen.center + w.inputs, [](float one) { return std::isfinite(one); }), where,
            "has a center that is not a number");
    const bool sound = all_from_0(screen.metric, w.inputs) && all_from_0(screen.sizes, w.outputs);
    require(sound, where, "has a metric or a size that is not a number from 0");
    const float bounds[] = {screen.residual, screen.length, screen.stray, screen.stretch, screen.largest, screen.bias};
    require(all_from_0(bounds, 6) && screen.stretch > 0, where, "has a bound that is not a number from 0");
}

}  // namespace

bool Program::remembers() const {
    return std::any_of(operations.begin(), operations.end(), [](const Operation& op) { return op.kind == Kind::delta; });
}

int Program::output_size() const { return head.output_present ? head.output.outputs : hidden; }

void Program::check() const {
    require(hidden > 0 && vocabulary > 0 && max_positions > 0, "program", "a size is not above 0");
    require(cache != Format::int4 && cache != Format::codes, "program", "the cache is neither f32 nor bf16 nor int8");
    if (embedding.tied) {
        require(head.output_present, "embedding", "is tied to a head without outputs");
        check_matrix(head.output, vocabulary, embedding.size, "head.output");
    } else {
        check_table(embedding.tokens, embedding.size, "embedding.tokens");
        require(embedding.tokens.rows == vocabulary, "embedding.tokens", "does not fit the vocabulary");
    }
    require(embedding.position_offset >= 0, "embedding", "the offset of positions is negative");
    if (embedding.positions.rows) {
        check_table(embedding.positions, embedding.size, "embedding.positions");
        require(embedding.positions.rows - embedding.position_offset >= max_positions, "embedding.positions",
                "are fewer than the model's");
    }
    if (embedding.segments.rows) check_table(embedding.segments, embedding.size, "embedding.segments");
    if (embedding.project_present) {
        check_matrix(embedding.project, hidden, embedding.size, "embedding.project");
    } else {
        require(embedding.size == hidden, "embedding", "has another size than the hidden one, and no matrix between them");
    }
    require(!relative.heads || relative.positions >= max_positions, "relative", "has fewer positions than the model");
    for (std::size_t i = 0; i < ropes.size(); ++i) check_rope(ropes[i], "rope " + std::to_string(i));
    check_rows(distances, max_positions);
    int slot = 0;
    for (const Operation& op : operations) {
        if (op.kind != Kind::norm) check_placement(op);
        if (op.kind == Kind::attention) {
            check_attention(op, *this);
            check_distances(op, *this);
            require(op.slot == slot++, op.name, "its slot of the cache is out of order");
        } else if (op.kind == Kind::delta) {
            check_delta(op, *this);
            require(op.slot == slot++, op.name, "its slot of the cache is out of order");
        } else if (op.kind == Kind::mlp) {
            check_mlp(op, *this);
        }
    }
    const int inner = head.dense_present && head.output_present ? head.output.inputs : hidden;
    if (head.dense_present) check_matrix(head.dense, inner, hidden, "head.dense");
    require(std::isfinite(head.scale), "head", "the scale is not a number");
    require(std::isfinite(head.softcap) && head.softcap >= 0, "head", "the soft cap is not a number from 0");
    if (head.output_present) {
        require(head.output.outputs > 0, "head.output", "has no outputs");
        check_matrix(head.output, head.output.outputs, inner, "head.output");
        check_screen(head.screen, head);
    }
}

}  // namespace chinchilla
