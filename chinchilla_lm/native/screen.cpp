// The largest output of a row, without reading all of the head's last matrix: a copy of it in fewer bits says which words
// cannot be the largest, and only the others are computed with the matrix itself, by the very kernel that computes all.
// The answer is that of the whole head, whatever the text and the weights; how much is saved depends on both.
//
// K inputs x as the matrix multiplies them (rounded already), words v with rows w_v and outputs y_v as its kernel sums them.
// The copy stands by other axes, the rows q_j of Q, [K][K]: at pack time (pack/screen.py) those along which the model's
// states are long come first and get more bits. Let c be what the rows have in common, S the copy as it is stored, and
//
//     w_v - c = Qᵀ s_v + r_v,   r_v = Qᵀ u_v + t_v,
//
// with u_v computed as Q r_v and t_v tiny, for Q is orthogonal but for its own rounding. Then, with z̃ the inputs by those
// axes as the copy's kernels have rounded them,
//
//     w_v·x = c·x + s_v·z̃ + s_v·(Qx - z̃) + u_v·(Qx) + t_v·x.
//
// The first is the same for all words, the second is what the copy's kernels compute. The others by Cauchy and Schwarz,
// the third one in a metric m (one weight an axis, which makes it least for the states that were seen):
//
//     |s_v·(Qx - z̃)| ≤ ‖s_v‖ ‖Qx - z̃‖,   |u_v·Qx| ≤ ‖u_v / m‖ ‖m Qx‖,   |t_v·x| ≤ stray ‖x‖.
//
// A program has one number a word for the first two: sizes_v · length ≥ ‖s_v‖ and sizes_v · residual ≥ ‖u_v / m‖.
//
// Rounding. A sum of n products in floats, in whatever order, fused or not, is wrong by at most γ Σ |w x| with
// γ = n u / (1 - n u), u = 2⁻²⁴ (Higham 2002, theorem 3.1 and lemma 8.4); n = 2 K + 64 counts each product, each sum, the scales
// of groups, and a bias. Σ |w x| ≤ ‖w‖ ‖x‖. So y_v is within γ (largest ‖x‖ + bias) of w_v·x + b_v; the copy's outputs
// within γ (‖s_v‖ ‖z̃‖ + bias) of s_v·z̃ + b_v; n is K + 63 larger than either needs, which pays for the one sum and product in
// floats by which a word's bound is compared; and Qx, of which the kernel gives z, within stretch (‖x - x'‖ + γ √K ‖x'‖) of z, x' being
// x as the axes' matrix rounds it. What is smaller than any normal float, and may count as 0, is within kTiny. All of this
// is computed in double precision, whose own rounding is 2²⁹ times finer, and is made up for by kSafe.
//
// The words that are left are those with output + bound ≥ an output of the matrix itself: of the word that the copy
// thinks best, whose panel is computed first. Each of these is then computed, so the largest is among them, and so are all
// that are equal to it, also once the outputs are multiplied by a scale.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "pass.h"

namespace chinchilla {

namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kSafe = 1.0 + 0x1p-20;
constexpr double kTiny = 1e-25;
constexpr double kLarge = 1e30;  // sums of what is smaller do not overflow
constexpr int kRun = 64;         // panels that are computed at once, at the most

double gamma_of(int inputs) {
    const double n = (2.0 * inputs + 64.0) * kUnit;
    return n / (1.0 - n);
}

// A prepared row as the numbers that it stands for.
void numbers(const Matrix& w, const Input& in, int row, double* y) {
    const std::byte* x = in.data + row * in.stride;
    const int groups = w.groups(), group = w.padded() / groups;
    for (int k = 0; k < w.inputs; ++k) {
        if (w.format == Format::f32) {
            float value;
            std::memcpy(&value, x + 4 * k, 4);
            y[k] = value;
        } else if (w.format == Format::bf16) {
            std::uint16_t high;
            std::memcpy(&high, x + 2 * k, 2);
            const std::uint32_t bits = static_cast<std::uint32_t>(high) << 16;
            float value;
            std::memcpy(&value, &bits, 4);
            y[k] = value;
        } else {
            y[k] = static_cast<double>(static_cast<std::int8_t>(x[k])) * in.scales[static_cast<std::size_t>(row) * groups + k / group];
        }
    }
}

template <class F>
double length(int count, F&& each) {
    double squares = 0.0;
    for (int k = 0; k < count; ++k) squares += each(k) * each(k);
    return std::sqrt(squares);
}

std::size_t prepared_bytes(const Matrix& w, int rows) {
    return round_up<std::size_t>(rows * (w.row_bytes() + 12 * static_cast<std::size_t>(w.groups())), 64);
}

}  // namespace

bool Best::before(const Best& other) const {
    if (other.index < 0 || index < 0) return other.index < 0 && index >= 0;
    const bool nan = std::isnan(value), others = std::isnan(other.value);
    if (nan != others) return nan;
    return (!nan && value > other.value) || ((nan || value == other.value) && index < other.index);
}

// What is known of a row once the copy has been looked at: its outputs less `limit` must not be below -reach · sizes.
struct Pass::Looked {
    double common = 0.0, slack = 0.0;  // c·x; what bounds hold for every word
    float reach = 0.0F;
    bool bounded = false;
};

void Pass::reserve_best(const Job& job) {
    const Matrix& w = program_.head.output;
    const Screen& screen = program_.head.screen;
    const std::size_t rows = job.wanted.size();
    outputs_.reserve_of<float>(rows * w.panels() * kLanes + kLanes);
    bests_.reserve_of<Best>(rows * scratch_.size());
    if (!screen.present) return;
    std::size_t bytes = prepared_bytes(screen.axes, kScreenedRows) + prepared_bytes(screen.lead, kScreenedRows);
    if (screen.rest_present) bytes += prepared_bytes(screen.rest, kScreenedRows);
    bytes += round_up<std::size_t>(w.panels(), 64) + 3 * 8 * static_cast<std::size_t>(w.inputs);
    for (Scratch& scratch : scratch_) scratch.screen.reserve(bytes + 64);
}

Screened Pass::take_screened() {
    Screened total;
    for (Scratch& scratch : scratch_) {
        const Screened some = std::exchange(scratch.screened, {});
        total.rows += some.rows;
        total.words += some.words;
        total.panels += some.panels;
        total.whole += some.whole;
    }
    return total;
}

// Outputs of some panels as the head gives them.
void Pass::score(const Input& in, int rows, int panel, int panels, float* y, std::size_t stride) const {
    const Head& head = program_.head;
    k_.multiply(head.output, in, 0, rows, panel, panels, y, stride, false);
    if (head.scale == 1.0F && head.softcap == 0.0F) return;
    for (int row = 0; row < rows; ++row) k_.cap(y + row * stride, panels * kLanes, head.scale, head.softcap);
}

void Pass::see(int rows, int panel, int panels, const float* y, std::size_t stride, Best* best) const {
    const int known = std::min(panels * kLanes, program_.head.output.outputs - panel * kLanes);
    if (known <= 0) return;
    for (int row = 0; row < rows; ++row) {
        const int at = k_.largest(y + row * stride, known);
        const Best found{panel * kLanes + at, y[row * stride + at]};
        if (found.before(best[row])) best[row] = found;
    }
}

// axes: room of its own for the rows by the copy's axes.
void Pass::best(const Input& in, float* axes, const Job& job, Member me) {
    const Matrix& w = program_.head.output;
    const int rows = static_cast<int>(job.wanted.size());
    const std::size_t stride = static_cast<std::size_t>(w.panels()) * kLanes;
    Best* mine = bests_of(me.index, rows);
    std::fill_n(mine, rows, Best{});
    if (program_.head.screen.present && rows <= kScreenedRows) {
        screen(in, axes, rows, me);
    } else {
        me.divide(w.panels(), kRun, rows, [&](int begin, int end) {
            float* y = outputs_.as() + static_cast<std::size_t>(begin) * kLanes;
            score(in, rows, begin, end - begin, y, stride);
            see(rows, begin, end - begin, y, stride, mine);
        });
    }
    me.meet();
    if (me.index) return;
    for (int row = 0; row < rows; ++row) {
        Best found;
        for (int member = 0; member < me.count; ++member) {
            const Best& one = bests_of(member, rows)[row];
            if (one.before(found)) found = one;
        }
        job.best[row] = found;
    }
}

// The copy's outputs of this member's panels, and what bounds them. Every member rounds the inputs for itself.
void Pass::approximate(const Input& in, float* axes, int rows, Looked* looked, Member me) {
    const Matrix& w = program_.head.output;
    const Screen& screen = program_.head.screen;
    const int size = w.inputs, lead = screen.lead.inputs;
    std::byte* memory = scratch_[me.index].screen.as<std::byte>();
    const auto take = [&](std::size_t bytes) { return std::exchange(memory, memory + bytes); };
    double* x = reinterpret_cast<double*>(take(8 * static_cast<std::size_t>(size)));
    double* rounded = reinterpret_cast<double*>(take(8 * static_cast<std::size_t>(size)));
    memory = scratch_[me.index].screen.as<std::byte>() + round_up<std::size_t>(16 * static_cast<std::size_t>(size), 64);
    const Input to_axes = place(screen.axes, take(prepared_bytes(screen.axes, rows)), rows);
    const Input to_lead = place(screen.lead, take(prepared_bytes(screen.lead, rows)), rows);
    Input to_rest;
    if (screen.rest_present) to_rest = place(screen.rest, take(prepared_bytes(screen.rest, rows)), rows);
    const double gamma = gamma_of(w.padded());
    double strayed[kScreenedRows];
    float* single = scratch_[me.index].row.as();
    for (int row = 0; row < rows; ++row) {
        numbers(w, in, row, x);
        std::copy_n(x, size, single);
        k_.prepare(screen.axes, single, to_axes, row, 0, screen.axes.padded());
        numbers(screen.axes, to_axes, row, rounded);
        const double all = length(size, [&](int k) { return x[k]; }), lost = length(size, [&](int k) { return x[k] - rounded[k]; });
        Looked& one = looked[row];
        one.bounded = std::isfinite(all) && all * std::max(screen.largest, 1.0F) < kLarge;
        one.common = 0.0;
        for (int k = 0; k < size; ++k) one.common += static_cast<double>(screen.center[k]) * x[k];
        one.slack = gamma * ((screen.largest + kTiny) * (all + kTiny) + 2.0 * screen.bias) + screen.stray * all + kTiny;
        strayed[row] = screen.stretch * (lost + gamma * std::sqrt(static_cast<double>(size)) * (all + lost) + kTiny);
    }
    multiply(screen.axes, to_axes, rows, axes, wide_, false, me);
    me.meet();
    double most = 0.0;  // of the metric
    for (int k = 0; k < size; ++k) most = std::max<double>(most, screen.metric[k]);
    for (int row = 0; row < rows; ++row) {
        const float* z = axes + row * wide_;
        k_.prepare(screen.lead, z, to_lead, row, 0, screen.lead.padded());
        if (screen.rest_present) k_.prepare(screen.rest, z + lead, to_rest, row, 0, screen.rest.padded());
        numbers(screen.lead, to_lead, row, rounded);
        if (screen.rest_present) numbers(screen.rest, to_rest, row, rounded + lead);
        const double measured = length(size, [&](int k) { return static_cast<double>(screen.metric[k]) * z[k]; });
        const double off = length(size, [&](int k) { return z[k] - rounded[k]; }), all = length(size, [&](int k) { return rounded[k]; });
        const double reach = screen.residual * (measured + most * strayed[row]) + screen.length * (off + strayed[row] + gamma * all);
        looked[row].bounded = looked[row].bounded && reach < kLarge;
        looked[row].reach = static_cast<float>(reach * kSafe);
    }
    const std::size_t stride = static_cast<std::size_t>(w.panels()) * kLanes;
    multiply(screen.lead, to_lead, rows, outputs_.as(), stride, false, me);
    if (screen.rest_present) multiply(screen.rest, to_rest, rows, outputs_.as(), stride, true, me);
}

void Pass::screen(const Input& in, float* axes, int rows, Member me) {
    const Matrix& w = program_.head.output;
    const Screen& screen = program_.head.screen;
    const std::size_t stride = static_cast<std::size_t>(w.panels()) * kLanes;
    const Share share = me.share(w.panels());
    Best* mine = bests_of(me.index, rows);
    Looked looked[kScreenedRows];
    approximate(in, axes, rows, looked, me);
    float* outputs = outputs_.as() + static_cast<std::size_t>(share.begin) * kLanes;
    see(rows, share.begin, share.end - share.begin, outputs, stride, mine);
    me.meet();
    Scratch& scratch = scratch_[me.index];
    std::uint8_t* flags = scratch.screen.as<std::uint8_t>();
    float* tile = scratch.tile.as();
    float limits[kScreenedRows];
    bool whole = false;
    for (int row = 0; row < rows; ++row) {
        Best guess, exact[kScreenedRows];
        for (int member = 0; member < me.count; ++member) {
            const Best& one = bests_of(member, rows)[row];
            if (one.before(guess)) guess = one;
        }
        const int panel = std::max(guess.index, 0) / kLanes;
        k_.multiply(w, in, 0, rows, panel, 1, tile, kLanes, false);
        see(rows, panel, 1, tile, kLanes, exact);
        const double least = exact[row].value - 4.0 * kUnit * std::fabs(exact[row].value) - kTiny;
        const double limit = least - looked[row].common - looked[row].slack;
        limits[row] = std::nextafter(static_cast<float>(limit), -std::numeric_limits<float>::infinity());
        whole = whole || !looked[row].bounded || !std::isfinite(limits[row]);
    }
    me.meet();  // all have read what the others guessed
    std::fill_n(mine, rows, Best{});
    std::fill(flags + share.begin, flags + share.end, whole ? 1 : 0);
    long long words = whole ? static_cast<long long>(rows) * (share.end - share.begin) * kLanes : 0;
    for (int row = 0; row < rows && !whole; ++row) {
        const float* sizes = screen.sizes + static_cast<std::size_t>(share.begin) * kLanes;
        words += k_.within(outputs + row * stride, sizes, looked[row].reach, limits[row], share.end - share.begin, flags + share.begin);
    }
    for (int panel = share.begin, end; panel < share.end; panel = end) {
        for (end = panel; end < share.end && end - panel < kRun && flags[end]; ++end) {}
        if (end == panel) {
            ++end;
            continue;
        }
        float* y = outputs_.as() + static_cast<std::size_t>(panel) * kLanes;
        score(in, rows, panel, end - panel, y, stride);
        see(rows, panel, end - panel, y, stride, mine);
        scratch.screened.panels += end - panel;
    }
    scratch.screened.words += words;
    if (me.index) return;
    scratch.screened.rows += rows;
    scratch.screened.whole += whole ? rows : 0;
}

}  // namespace chinchilla
