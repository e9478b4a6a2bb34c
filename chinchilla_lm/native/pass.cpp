#include "pass.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

namespace chinchilla {

namespace {

constexpr int kPartOutputs = 64;  // of a part, see kPartRows
constexpr int kWidestPart = 128;  // a group is no wider
// Rows that every member makes ready for itself, which is sooner done than waiting for the others.
constexpr int kOwnRows = 8;
constexpr int kSomeRows = 16, kSomePanels = 4;  // that a member takes at a time, at the most
constexpr int kSlack = 64;  // floats behind a buffer that a whole vector may touch

void read_row(const Table& table, int row, float* y, bool add) {
    const std::size_t at = static_cast<std::size_t>(row) * table.size;
    for (int i = 0; i < table.size; ++i) {
        float value;
        if (table.format == Format::f32) {
            std::memcpy(&value, table.data + 4 * (at + i), 4);
        } else {
            std::uint16_t high;
            std::memcpy(&high, table.data + 2 * (at + i), 2);
            const std::uint32_t bits = static_cast<std::uint32_t>(high) << 16;
            std::memcpy(&value, &bits, 4);
        }
        y[i] = add ? y[i] + value : value;
    }
}

bool few(int rows, Member me) { return rows <= std::min(me.count, kOwnRows); }

}  // namespace

Pass::Pass(const Program& program, const Kernels& kernels, int members)
    : program_(program), k_(kernels), width_(padded_width(program.hidden)), scratch_(members), seconds_(program.operations.size() + 1) {
    wide_ = width_;
    const auto see = [&](const Matrix& w) {
        wide_ = std::max<std::size_t>(wide_, padded_width(w.inputs));
        widest_ = std::max(widest_, w.padded());
    };
    for (const Operation& op : program.operations) {
        if (op.kind == Kind::norm) continue;
        see(op.first);
        see(op.second);
        if (op.kind != Kind::mlp) wide_ = std::max<std::size_t>(wide_, padded_width(op.first.outputs));
    }
    if (program.embedding.project_present) see(program.embedding.project);
    if (program.head.dense_present) see(program.head.dense);
    if (program.head.output_present) see(program.head.output);
}

void Pass::reserve(const Job& job) {
    const std::size_t rows = std::max<std::size_t>(job.rows, 1);
    x_.reserve_of<float>(rows * width_ + kSlack);
    mid_.reserve_of<float>(rows * wide_ + kSlack);
    seen_.reserve_of<float>(rows * wide_ + kSlack);
    // A row as floats, or as bytes with a scale and a sum for each 32 of them.
    const std::size_t input = static_cast<std::size_t>(widest_) * 4 + 64;
    input_.reserve(rows * input + 4096);
    second_.reserve(rows * input + 4096);
    for (Scratch& scratch : scratch_) {
        scratch.input.reserve(kOwnRows * input + 4096);
        const std::size_t part = 2 * std::max<std::size_t>(kPartRows * kWidestPart, wide_ + kLanes * kOwnRows);
        scratch.tile.reserve_of<float>(part + kSlack);
        scratch.row.reserve_of<float>(2 * wide_ + kSlack);
    }
    std::size_t queries = 0, angles = 0;
    for (const Operation& op : program_.operations) {
        if (op.kind == Kind::delta) reserve_delta(op);
        if (op.kind != Kind::attention) continue;
        reserve_attention(op, job);
        queries = std::max<std::size_t>(queries, static_cast<std::size_t>(op.heads) * (round_up(op.head_dim, 32) * 4));
    }
    for (const Rope& rope : program_.ropes) angles += 2 * padded_width(static_cast<int>(rope.frequencies.size()));
    queries_.reserve(rows * queries + 4096);
    if (program_.distances.positions) keys_.reserve(rows * queries + 4096);
    angles_.reserve_of<float>(rows * angles + kSlack);
    sequence_of_.resize(rows);
    passing_at_.assign(job.sequences.size(), 0);
    std::size_t passing = 0;
    for (std::size_t s = 0; s < job.sequences.size(); ++s) {
        const Sequence& sequence = job.sequences[s];
        std::fill_n(sequence_of_.begin() + sequence.row, sequence.count, static_cast<int>(s));
        passing_at_[s] = passing;
        if (sequence.cache) continue;
        std::size_t most = 0;
        for (const Operation& op : program_.operations) {
            if (op.kind != Kind::attention) continue;
            most = std::max(most, op.kv_heads * KeyValues::bytes(program_.cache, op.head_dim, sequence.count));
        }
        passing += most;
    }
    passing_.reserve(passing);
    std::size_t parts = 0;
    for (const Operation& op : program_.operations) {
        if (op.kind != Kind::attention || job.sequences.size() != rows) continue;
        parts = std::max<std::size_t>(parts, static_cast<std::size_t>(op.heads) * part_size(op.head_dim));
    }
    parts_.reserve_of<float>(rows * parts * scratch_.size());
    if (job.best) reserve_best(job);
    if (job.targets) nats_.reserve_of<float>(job.wanted.size() * (scratch_.size() * kTally + 1));
    rows_ = job.rows;
}

std::size_t Pass::bytes() const {
    std::size_t total = 0;
    for (const Buffer* buffer : {&x_, &mid_, &seen_, &input_, &second_, &queries_, &keys_, &angles_, &passing_, &parts_, &nats_, &outputs_, &bests_}) {
        total += buffer->bytes();
    }
    for (const Scratch& scratch : scratch_) {
        for (const Buffer* buffer : {&scratch.input, &scratch.tile, &scratch.row, &scratch.scores, &scratch.probabilities, &scratch.distances, &scratch.screen}) {
            total += buffer->bytes();
        }
    }
    return total;
}

void Pass::run(const Job& job, Member me) {
    Clock::time_point then = Clock::now();
    const auto lap = [&](std::size_t index) {
        if (me.index) return;
        const Clock::time_point now = Clock::now();
        seconds_[index] += std::chrono::duration<double>(now - then).count();
        then = now;
    };
    const std::size_t rest = program_.operations.size();
    embed(job, me);
    me.meet();
    lap(rest);
    for (std::size_t index = 0; index < rest; ++index) {
        const Operation& op = program_.operations[index];
        if (op.kind == Kind::attention) {
            attention(op, job, me);
        } else if (op.kind == Kind::delta) {
            delta(op, job, me);
        } else if (op.kind == Kind::mlp) {
            mlp(op, job.rows, me);
        } else {
            const Share share = me.share(job.rows);
            for (int row = share.begin; row < share.end; ++row) {
                float* x = x_.as() + row * width_;
                k_.norm(op.norm, x, x, program_.hidden);
            }
            me.meet();
        }
        lap(index);
    }
    head(job, me);
    lap(rest);
}

std::vector<double> Pass::take_seconds() {
    return std::exchange(seconds_, std::vector<double>(seconds_.size()));
}

void Pass::embed(const Job& job, Member me) {
    const Embedding& from = program_.embedding;
    const Share share = me.share(job.rows);
    float* const to = from.project_present ? mid_.as() : x_.as();
    const std::size_t stride = from.project_present ? wide_ : width_;
    for (int row = share.begin; row < share.end; ++row) {
        const Sequence& sequence = job.sequences[sequence_of_[row]];
        const int position = sequence.past + row - sequence.row;
        float* x = to + row * stride;
        if (from.tied) {
            k_.unpack_row(program_.head.output, job.ids[row], x);
        } else {
            read_row(from.tokens, job.ids[row], x, false);
        }
        if (from.scale != 1.0F) std::for_each(x, x + from.size, [&](float& value) { value *= from.scale; });
        if (from.segments.rows) read_row(from.segments, job.segments ? job.segments[row] : 0, x, true);
        if (from.positions.rows) read_row(from.positions, position + from.position_offset, x, true);
        if (from.norm.present) k_.norm(from.norm, x, x, from.size);
        for (std::size_t rope = 0; rope < program_.ropes.size(); ++rope) {
            const Rope& one = program_.ropes[rope];
            const bool longer = one.switch_at && sequence.total > one.switch_at;
            const std::vector<float>& frequencies = longer ? one.longer : one.frequencies;
            float* cosine = angles(static_cast<int>(rope), row);
            float* sine = cosine + padded_width(static_cast<int>(frequencies.size()));
            for (std::size_t i = 0; i < frequencies.size(); ++i) {
                const float angle = static_cast<float>(position) * frequencies[i];
                cosine[i] = std::cos(angle) * one.scale;
                sine[i] = std::sin(angle) * one.scale;
            }
        }
    }
    if (!from.project_present) return;
    me.meet();
    multiply(from.project, inputs(from.project, nullptr, to, stride, job.rows, me), job.rows, x_.as(), width_, false, me);
}

float* Pass::angles(int rope, int row) const {
    std::size_t at = 0, width = 0;
    for (int i = 0; i <= rope; ++i) {
        at += width * rows_;
        width = 2 * padded_width(static_cast<int>(program_.ropes[i].frequencies.size()));
    }
    return angles_.as() + at + row * width;
}

// Where `rows` prepared rows of a matrix's inputs, their scales and their sums stand in a memory.
Input Pass::place(const Matrix& w, std::byte* memory, int rows) const {
    Input in;
    in.stride = w.row_bytes();
    in.data = memory;
    if (w.format == Format::f32 || w.format == Format::bf16) return in;
    std::byte* behind = memory + in.stride * rows;
    in.scales = reinterpret_cast<float*>(behind);
    in.sums = reinterpret_cast<std::int32_t*>(behind + 4 * static_cast<std::size_t>(rows) * w.groups());
    in.totals = in.scales + 2 * static_cast<std::size_t>(rows) * w.groups();
    return in;
}

// Rows of x, normed if asked for, as inputs of a matrix. Where they are few every member makes them all for itself.
Input Pass::inputs(const Matrix& w, const Norm* norm, const float* x, std::size_t stride, int rows, Member me) {
    Scratch& scratch = scratch_[me.index];
    const bool alone = few(rows, me);
    const Input in = place(w, alone ? scratch.input.as<std::byte>() : input_.as<std::byte>(), rows);
    const auto make = [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
            const float* from = x + row * stride;
            if (norm && norm->present) {
                k_.norm(*norm, from, scratch.row.as(), w.inputs);
                from = scratch.row.as();
            }
            k_.prepare(w, from, in, row, 0, w.padded());
        }
    };
    if (alone) {
        make(0, rows);
    } else {
        me.divide(rows, kSomeRows, rows, make);
        me.meet();
    }
    return in;
}

// y = W x, or += with `add`.
void Pass::multiply(const Matrix& w, const Input& in, int rows, float* y, std::size_t stride, bool add, Member me) {
    me.divide(w.panels(), kSomePanels, rows, [&](int begin, int end) {
        k_.multiply(w, in, 0, rows, begin, end - begin, y + begin * kLanes, stride, add);
    });
}

// x = x + W y, with what the placement does behind it. `added` is room for W y where a norm comes before the sum; not
// where y was, which a slower member may still be reading.
void Pass::join(const Operation& op, const Input& in, float* added, int rows, Member me) {
    const bool apart = op.after.present || op.residual_scale != 1.0F;
    multiply(op.second, in, rows, apart ? added : x_.as(), apart ? wide_ : width_, !apart, me);
    me.meet();
    if (op.placement != Placement::post && !apart) return;
    const Share share = me.share(rows);
    for (int row = share.begin; row < share.end; ++row) {
        float* x = x_.as() + row * width_;
        if (apart) {
            float* y = added + row * wide_;
            if (op.after.present) k_.norm(op.after, y, y, program_.hidden);
            if (op.residual_scale != 1.0F) k_.cap(y, program_.hidden, op.residual_scale, 0.0F);
            k_.add(y, x, program_.hidden);
        } else {
            k_.norm(op.norm, x, x, program_.hidden);
        }
    }
    me.meet();
}

void Pass::mlp(const Operation& op, int rows, Member me) {
    const Norm* before = op.placement == Placement::post ? nullptr : &op.norm;
    const Input in = inputs(op.first, before, x_.as(), width_, rows, me);
    const Matrix& w = op.second;
    const bool whole = w.group == 0 && (w.format == Format::int8 || w.format == Format::int4);  // a row has one scale
    if (whole || few(rows, me)) {
        activations(op, in, rows, nullptr, me);
        return join(op, inputs(w, nullptr, mid_.as(), wide_, rows, me), seen_.as(), rows, me);
    }
    const Input to = place(w, second_.as<std::byte>(), rows);
    activations(op, in, rows, &to, me);
    join(op, to, seen_.as(), rows, me);
}

// What stands between an MLP's products, part by part: straight into the second one's inputs, or as floats into mid_.
void Pass::activations(const Operation& op, const Input& in, int rows, const Input* to, Member me) {
    const int step = op.gated ? 2 : 1;  // panels that make one panel of activations
    const int width = std::max(kPartOutputs, op.second.group), all = op.first.panels() / step * kLanes;
    float* tile = scratch_[me.index].tile.as();
    const auto part = [&](int from, int next) {
        const int count = next - from;
        for (int row = 0; row < rows; row += kPartRows) {
            const int some = std::min(kPartRows, rows - row);
            const std::size_t stride = static_cast<std::size_t>(count) * step;
            k_.multiply(op.first, in, row, some, from / kLanes * step, count / kLanes * step, tile, stride, false);
            if (!op.gated) k_.activate(op.activation, tile, some * count);
            for (int i = 0; i < some; ++i) {
                float* y = tile + i * stride;
                float* target = to ? y : mid_.as() + (row + i) * wide_ + from;
                if (op.gated) {
                    k_.gate(op.activation, y, target, count);
                } else if (!to) {
                    std::copy_n(y, count, target);
                }
                if (to) k_.prepare(op.second, y, *to, row + i, from, next == all ? op.second.padded() : next);
            }
        }
    };
    if (few(rows, me)) {  // a member's share is one part
        const Share share = me.share(all / kLanes);
        if (share.begin < share.end) part(share.begin * kLanes, share.end * kLanes);
    } else {
        me.divide((all + width - 1) / width, 1, rows, [&](int begin, int end) {
            for (int i = begin; i < end; ++i) part(i * width, std::min((i + 1) * width, all));
        });
    }
    me.meet();
}

}  // namespace chinchilla
