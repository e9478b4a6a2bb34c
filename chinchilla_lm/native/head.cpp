// What stands behind the last link: the norm, pooling, and the head's outputs, or only how likely they make a target.
#include <algorithm>
#include <cmath>
#include <limits>

#include "pass.h"

namespace chinchilla {

namespace {

constexpr int kNatsPanels = 8;  // of outputs that are made at a time where only their likelihood is asked for

void clear_tally(float* tally) {
    std::fill_n(tally, kLanes, std::numeric_limits<float>::lowest());
    std::fill_n(tally + kLanes, kTally - kLanes, 0.0F);
}

}  // namespace

void Pass::head(const Job& job, Member me) {
    const Head& head = program_.head;
    const int size = program_.hidden;
    const bool pooled = head.pooling != Pooling::none;
    const int count = static_cast<int>(pooled ? job.sequences.size() : job.wanted.size());
    if (count == 0) return;
    Scratch& scratch = scratch_[me.index];
    const Share share = me.share(count);
    for (int i = share.begin; i < share.end; ++i) {
        float* to = mid_.as() + i * wide_;
        const auto normed = [&](int row, float* y) {
            const float* x = x_.as() + row * width_;
            if (head.norm.present) {
                k_.norm(head.norm, x, y, size);
            } else {
                std::copy_n(x, width_, y);
            }
        };
        if (!pooled) {
            normed(job.wanted[i], to);
            continue;
        }
        const Sequence& sequence = job.sequences[i];
        const int last = sequence.row + sequence.count - 1;
        normed(head.pooling == Pooling::last ? last : sequence.row, to);
        if (head.pooling != Pooling::mean) continue;
        for (int row = sequence.row + 1; row <= last; ++row) {
            normed(row, scratch.row.as());
            k_.add(scratch.row.as(), to, size);
        }
        std::for_each(to, to + size, [&](float& value) { value /= static_cast<float>(sequence.count); });
    }
    me.meet();
    const float* from = mid_.as();
    if (head.dense_present) {
        const Input in = inputs(head.dense, nullptr, from, wide_, count, me);
        multiply(head.dense, in, count, seen_.as(), wide_, false, me);
        me.meet();
        for (int i = share.begin; i < share.end; ++i) {
            float* row = seen_.as() + i * wide_;
            k_.activate(head.activation, row, padded_width(head.dense.outputs));
            if (head.transform.present) k_.norm(head.transform, row, row, head.dense.outputs);
        }
        me.meet();
        from = seen_.as();
    }
    if (job.states) {
        for (int i = share.begin; i < share.end; ++i) std::copy_n(from + i * wide_, head.output.inputs, job.output + i * job.stride);
        return;
    }
    if (head.output_present) {
        const Input in = inputs(head.output, nullptr, from, wide_, count, me);
        if (job.best) return best(in, from == mid_.as() ? seen_.as() : mid_.as(), job, me);
        if (job.targets) return head_nats(in, job, me);
        multiply(head.output, in, count, job.output, job.stride, false, me);
        if (head.scale == 1.0F && head.softcap == 0.0F) return;
        me.meet();
        const int parts = head.output.panels();
        const Share mine = me.share(parts);
        for (int i = 0; i < count && mine.begin < mine.end; ++i) {
            k_.cap(job.output + i * job.stride + mine.begin * kLanes, (mine.end - mine.begin) * kLanes, head.scale, head.softcap);
        }
        return;
    }
    for (int i = share.begin; i < share.end; ++i) {
        double square = 0.0;
        for (int k = 0; k < size; ++k) square += static_cast<double>(from[i * wide_ + k]) * from[i * wide_ + k];
        // As torch's normalize: never a division by less than 1e-12.
        const float factor = head.normalize ? 1.0F / std::max(static_cast<float>(std::sqrt(square)), 1e-12F) : 1.0F;
        for (int k = 0; k < size; ++k) job.output[i * job.stride + k] = from[i * wide_ + k] * factor;
    }
}

// Outputs of some rows and some panels at a time, counted and forgotten: those of a text and a large vocabulary would
// take a thousand times the memory of the text. Each member counts the panels that it makes.
void Pass::head_nats(const Input& in, const Job& job, Member me) {
    const Head& head = program_.head;
    const Matrix& w = head.output;
    const int count = static_cast<int>(job.wanted.size());
    const std::size_t tallies = static_cast<std::size_t>(count) * kTally;
    float* const all = nats_.as();
    float* const mine = all + me.index * tallies;
    float* const at_targets = all + scratch_.size() * tallies;
    for (int i = 0; i < count; ++i) clear_tally(mine + static_cast<std::size_t>(i) * kTally);
    float* tile = scratch_[me.index].tile.as();
    const auto panels = [&](int first, int some) {
        const int begin = first * kLanes, width = some * kLanes, known = std::min(width, w.outputs - begin);
        for (int row = 0; row < count; row += kPartRows) {
            const int rows = std::min(kPartRows, count - row);
            k_.multiply(w, in, row, rows, first, some, tile, width, false);
            for (int i = 0; i < rows; ++i) {
                float* outputs = tile + static_cast<std::size_t>(i) * width;
                if (head.scale != 1.0F || head.softcap != 0.0F) k_.cap(outputs, width, head.scale, head.softcap);
                k_.tally(outputs, known, mine + static_cast<std::size_t>(row + i) * kTally);
                const int target = job.targets[job.wanted[row + i]] - begin;
                if (target >= 0 && target < known) at_targets[row + i] = outputs[target];
            }
        }
    };
    const int all_panels = w.panels(), parts = (all_panels + kNatsPanels - 1) / kNatsPanels;
    me.divide(parts, 1, count, [&](int begin, int end) {
        for (int part = begin; part < end; ++part) {
            panels(part * kNatsPanels, std::min(kNatsPanels, all_panels - part * kNatsPanels));
        }
    });
    me.meet();
    const Share share = me.share(count);
    for (int i = share.begin; i < share.end; ++i) {
        double top = -std::numeric_limits<double>::infinity(), total = 0.0;
        const auto each = [&](auto&& use) {  // lane of each member: the largest output, and the sum of e to what they are less
            for (int member = 0; member < me.count; ++member) {
                const float* tally = all + member * tallies + static_cast<std::size_t>(i) * kTally;
                for (int lane = 0; lane < kLanes; ++lane) {
                    use(tally[lane], static_cast<double>(tally[kLanes + lane]) - tally[2 * kLanes + lane]);
                }
            }
        };
        each([&](double most, double) { top = std::max(top, most); });
        each([&](double most, double sum) { total += sum * std::exp(most - top); });
        job.output[i * job.stride] = static_cast<float>(top + std::log(total) - at_targets[i]);
    }
}

}  // namespace chinchilla
