// Products of rows with packed matrices. A tile is M rows × N panels, its sums in registers over all of K.
//
// With one row (decoding) the weights stream from memory once and the product is as fast as they come; with more, each
// load of weights serves M rows, and two panels at once share the broadcast of a row's inputs.
//
// In every format but int4 a step is 64 bytes of a panel and 4 bytes of a row, so one loop serves three formats.

constexpr int kRows = L == 16 ? 12 : 4;  // rows of the largest tile
constexpr int kWide = L == 16 ? 2 : 1;   // panels of the largest tile: 24 sums in registers, 8 where there are 16
constexpr int kChains = 4;               // of sums where there is one row: a single chain would wait for each product
// Bytes ahead of a single row's product that weights are asked for. Panels follow each other, so this reaches into the
// next one, where the CPU's own prefetcher would begin anew.
constexpr int kAhead = 8192;

struct F32 {
    using Sum = vf;
    INLINE vf dot(vf sum, vi w, vi x) { return sum + (vf)w * (vf)x; }
};

struct Bf16 {
    using Sum = vf;
    INLINE vf dot(vf sum, vi w, vi x) { return dot_bf16(sum, w, x); }
};

struct Int8 {
    using Sum = vi;
    INLINE vi dot(vi sum, vi w, vi x) { return dot_bytes(sum, w, x); }
};

// The part of a panel's step that fills vector i of N panels.
INLINE vi weights_of(const std::byte* w, std::size_t stride, int i, int step) {
    return load<vi>(w + (i / V) * stride + 64 * static_cast<std::size_t>(step) + (i % V) * 4 * L);
}

INLINE vi spread(const std::byte* from) { return splat(load<std::int32_t>(from)); }

template <class P, int M, int N>
INLINE void sum_steps(const std::byte* x, std::size_t x_stride, const std::byte* w, std::size_t w_stride, int steps,
                      typename P::Sum (&sums)[M][N * V]) {
    if constexpr (M == 1) {
        typename P::Sum chains[kChains][N * V] = {};
        for (int step = 0; step < steps; step += kChains) {
            for (int c = 0; c < kChains; ++c) {
                __builtin_prefetch(w + 64 * (step + c) + kAhead);
                const vi inputs = spread(x + 4 * (step + c));
                for (int i = 0; i < N * V; ++i) {
                    chains[c][i] = P::dot(chains[c][i], weights_of(w, w_stride, i, step + c), inputs);
                }
            }
        }
        for (int i = 0; i < N * V; ++i) sums[0][i] = (chains[0][i] + chains[1][i]) + (chains[2][i] + chains[3][i]);
    } else {
        for (int step = 0; step < steps; ++step) {
            vi weights[N * V];
            for (int i = 0; i < N * V; ++i) weights[i] = weights_of(w, w_stride, i, step);
            for (int m = 0; m < M; ++m) {
                const vi inputs = spread(x + m * x_stride + 4 * step);
                for (int i = 0; i < N * V; ++i) sums[m][i] = P::dot(sums[m][i], weights[i], inputs);
            }
        }
    }
}

// Where a tile's results go.
struct Place {
    float* y;
    std::size_t stride;
    bool add;
};

INLINE void write(const Matrix& w, int panel, const Place& to, int m, int i, vf value) {
    const int column = (panel + i / V) * kLanes + (i % V) * L;
    if (w.bias) value += load<vf>(w.bias + column);
    float* y = to.y + m * to.stride + i * L;
    store(y, to.add ? load<vf>(y) + value : value);
}

template <class P, int M, int N>
static void float_tile(const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    vf sums[M][N * V] = {};
    const int steps = w.padded() / (w.format == Format::bf16 ? 2 : 1);
    const std::size_t stride = w.pitch ? w.pitch : w.stride();
    sum_steps<P, M, N>(in.data + row * in.stride, in.stride, w.data + panel * stride, stride, steps, sums);
    for (int m = 0; m < M; ++m) {
        for (int i = 0; i < N * V; ++i) write(w, panel, to, m, i, sums[m][i]);
    }
}

// Σ (w + 128) x - 128 Σ x, times the scales of the weights' and the inputs' rows.
template <int M, int N>
static void int8_tile(const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    vi sums[M][N * V] = {};
    const std::size_t stride = w.pitch ? w.pitch : w.stride();
    const std::byte* data = w.data + panel * stride;
    sum_steps<Int8, M, N>(in.data + row * in.stride, in.stride, data + 64, stride, w.padded() / 4, sums);
    for (int m = 0; m < M; ++m) {
        const vi offset = splat(128 * in.sums[row + m]);
        for (int i = 0; i < N * V; ++i) {
            const vf scales = load<vf>(data + (i / V) * stride + (i % V) * 4 * L) * splat(in.scales[row + m]);
            write(w, panel, to, m, i, __builtin_convertvector(sums[m][i] - offset, vf) * scales);
        }
    }
}

// Group by group: Σ q x in integers, times the group's scale; plus minimum times Σ x, or q is 8 too large.
template <int M>
static void int4_tile(const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    const std::byte* data = w.data + panel * w.stride();
    const int groups = w.groups(), steps = w.group / 8;
    const std::size_t part = round_up(groups * 32, 64);
    const std::byte* nibbles = data + part * (w.asymmetric ? 2 : 1);
    const std::byte* x = in.data + row * in.stride;
    const std::int32_t* sums_of_x = in.sums + static_cast<std::size_t>(row) * groups;
    vf totals[M][V] = {};
    for (int g = 0; g < groups; ++g) {
        vi sums[M][V];
        for (int m = 0; m < M; ++m) {
            const vi begin = splat(w.asymmetric ? 0 : -8 * sums_of_x[m * groups + g]);
            for (int v = 0; v < V; ++v) sums[m][v] = begin;
        }
        for (int step = 0; step < steps; ++step) {
            if constexpr (M == 1) __builtin_prefetch(nibbles + kAhead);
            for (int v = 0; v < V; ++v) {
                const vi both = load<vi>(nibbles + v * 4 * L);
                const vi low = both & 0x0f0f0f0f, high = (vi)((vu)both >> 4) & 0x0f0f0f0f;
                for (int m = 0; m < M; ++m) {
                    const std::byte* from = x + m * in.stride + 8 * step;
                    sums[m][v] = dot_bytes(dot_bytes(sums[m][v], low, spread(from)), high, spread(from + 4));
                }
            }
            nibbles += 64;
        }
        x += w.group;
        if constexpr (M == 1) {
            __builtin_prefetch(data + g * 32 + kAhead);
            if (w.asymmetric) __builtin_prefetch(data + part + g * 32 + kAhead);
        }
        for (int v = 0; v < V; ++v) {
            const vf scales = load_f16(data + g * 32 + v * 2 * L);
            for (int m = 0; m < M; ++m) totals[m][v] += __builtin_convertvector(sums[m][v], vf) * scales;
            if (!w.asymmetric) continue;
            const vf minima = load_f16(data + part + g * 32 + v * 2 * L);
            for (int m = 0; m < M; ++m) totals[m][v] += minima * splat(static_cast<float>(sums_of_x[m * groups + g]));
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) write(w, panel, to, m, v, totals[m][v] * splat(in.scales[row + m]));
    }
}

template <int M, int N>
INLINE void tile(const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    switch (w.format) {
        case Format::f32: return float_tile<F32, M, N>(w, in, row, panel, to);
        case Format::bf16: return float_tile<Bf16, M, N>(w, in, row, panel, to);
        case Format::int8: return int8_tile<M, N>(w, in, row, panel, to);
        case Format::int4:
            for (int n = 0; n < N; ++n) int4_tile<M>(w, in, row, panel + n, {to.y + n * kLanes, to.stride, to.add});
    }
}

// Rows in tiles of 12, 8, 4, 2 and 1, for N panels: the panels stay in the first-level cache, the rows stream past.
template <int N>
static void column(const Matrix& w, const Input& in, int row, int rows, int panel, Place to) {
    const auto next = [&](int count) {
        row += count;
        rows -= count;
        to.y += count * to.stride;
    };
    for (; kRows >= 12 && rows >= 12; next(12)) tile<12, N>(w, in, row, panel, to);
    for (; kRows >= 8 && rows >= 8; next(8)) tile<8, N>(w, in, row, panel, to);
    for (; rows >= 4; next(4)) tile<4, N>(w, in, row, panel, to);
    for (; rows >= 2; next(2)) tile<2, N>(w, in, row, panel, to);
    if (rows) tile<1, N>(w, in, row, panel, to);
}

static void multiply(const Matrix& w, const Input& in, int row, int rows, int first, int panels, float* y,
                     std::size_t y_stride, bool add) {
    int panel = 0;
    for (; rows > 1 && panel + kWide <= panels; panel += kWide) {
        column<kWide>(w, in, row, rows, first + panel, {y + panel * kLanes, y_stride, add});
    }
    for (; panel < panels; ++panel) column<1>(w, in, row, rows, first + panel, {y + panel * kLanes, y_stride, add});
}

static void unpack_row(const Matrix& w, int output, float* y) {
    const std::byte* panel = w.data + (output / kLanes) * w.stride();
    const int lane = output % kLanes;
    for (int k = 0; k < w.inputs; ++k) {
        if (w.format == Format::f32) {
            y[k] = load<float>(panel + 64 * k + 4 * lane);
        } else if (w.format == Format::bf16) {
            const std::uint32_t high = load<std::uint16_t>(panel + 64 * (k / 2) + 4 * lane + 2 * (k % 2));
            const std::uint32_t bits = high << 16;
            y[k] = load<float>(&bits);
        } else if (w.format == Format::int8) {
            const int value = static_cast<int>(panel[64 + 64 * (k / 4) + 4 * lane + k % 4]) - 128;
            y[k] = static_cast<float>(value) * load<float>(panel + 4 * lane);
        } else {
            const std::size_t part = round_up(w.groups() * 32, 64);
            const std::byte* scale = panel + (k / w.group) * 32;
            const int both = static_cast<int>(panel[part * (w.asymmetric ? 2 : 1) + 64 * (k / 8) + 4 * lane + k % 4]);
            const int value = k % 8 < 4 ? both & 15 : both >> 4;
            const vf scales = load_f16(scale + (lane / L) * 2 * L);
            y[k] = w.asymmetric ? static_cast<float>(value) * scales[lane % L] + load_f16(scale + part + (lane / L) * 2 * L)[lane % L]
                                : static_cast<float>(value - 8) * scales[lane % L];
        }
    }
}
