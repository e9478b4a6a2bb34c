// Products of rows with packed matrices. A tile is M rows × N panels, its sums in registers over all of K.
//
// With one row (decoding) the weights stream from memory once and the product is as fast as they come; with more, each
// load of weights serves M rows, and two panels at once share the broadcast of a row's inputs.
//
// In every format but int4 a step is 64 bytes of a panel and 4 bytes of a row, so one loop serves three formats.

constexpr bool kMany = L == 16;         // vector registers: 32, or taken for 16
constexpr int kWide = kMany ? 2 : 1;     // panels of the largest tile
constexpr int kChains = 4;               // of sums where there is one row: a single chain would wait for each product
// Bytes ahead of a single row's product that weights are asked for. Panels follow each other, so this reaches into the
// next one, where the CPU's own prefetcher would begin anew.
constexpr int kAhead = 8192;

// How a format's words of weights meet those of inputs.
struct F32 {
    using Sum = vf;
    using Inputs = vi;
    using Weights = vi;
    INLINE Inputs spread(const std::byte* from) { return splat(load<std::int32_t>(from)); }
    INLINE vi weights(vi w) { return w; }
    INLINE vf dot(vf sum, vi w, vi x) { return sum + (vf)w * (vf)x; }
};

struct Bf16 {
    using Sum = vf;
    using Inputs = HalfInputs;
    using Weights = vi;
    INLINE Inputs spread(const std::byte* from) { return spread_halves(from); }
    INLINE vi weights(vi w) { return w; }
    INLINE vf dot(vf sum, vi w, const Inputs& x) { return dot_bf16(sum, w, x); }
};

struct Int8 {
    using Sum = vi;
    using Inputs = ByteInputs;
    using Weights = ByteWeights;
    INLINE Inputs spread(const std::byte* from) { return spread_bytes(from); }
    INLINE ByteWeights weights(vi w) { return byte_weights(w); }
    INLINE vi dot(vi sum, const ByteWeights& w, const Inputs& x) { return dot_bytes(sum, w, x); }
};

// The part of a panel's step that fills vector i of N panels.
INLINE vi weights_of(const std::byte* w, std::size_t stride, int i, int step) {
    return load<vi>(w + (i / V) * stride + 64 * static_cast<std::size_t>(step) + (i % V) * 4 * L);
}

template <class P, int M, int N>
INLINE void sum_steps(const std::byte* x, std::size_t x_stride, const std::byte* w, std::size_t w_stride, int steps,
                      typename P::Sum (&sums)[M][N * V]) {
    if constexpr (M == 1) {
        typename P::Sum chains[kChains][N * V] = {};
        for (int step = 0; step < steps; step += kChains) {
            for (int c = 0; c < kChains; ++c) {
                __builtin_prefetch(w + 64 * (step + c) + kAhead);
                const typename P::Inputs inputs = P::spread(x + 4 * (step + c));
                for (int i = 0; i < N * V; ++i) {
                    chains[c][i] = P::dot(chains[c][i], P::weights(weights_of(w, w_stride, i, step + c)), inputs);
                }
            }
        }
        for (int i = 0; i < N * V; ++i) sums[0][i] = (chains[0][i] + chains[1][i]) + (chains[2][i] + chains[3][i]);
    } else {
        for (int step = 0; step < steps; ++step) {
            typename P::Weights weights[N * V];
            for (int n = 0; n < N; ++n) __builtin_prefetch(w + (n + N) * w_stride + 64 * step);
            for (int i = 0; i < N * V; ++i) weights[i] = P::weights(weights_of(w, w_stride, i, step));
            for (int m = 0; m < M; ++m) {
                const typename P::Inputs inputs = P::spread(x + m * x_stride + 4 * step);
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

// Σ (w + kOver) x - kOver Σ x, times the scales of the weights' and the inputs' rows.
template <int M, int N>
static void int8_tile(const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    vi sums[M][N * V] = {};
    const std::size_t stride = w.pitch ? w.pitch : w.stride();
    const std::byte* data = w.data + panel * stride;
    sum_steps<Int8, M, N>(in.data + row * in.stride, in.stride, data + 64, stride, w.padded() / 4, sums);
    for (int m = 0; m < M; ++m) {
        const vu offset = (vu)splat(kOver * in.sums[row + m]);
        for (int i = 0; i < N * V; ++i) {
            const vf scales = load<vf>(data + (i / V) * stride + (i % V) * 4 * L) * splat(in.scales[row + m]);
            write(w, panel, to, m, i, __builtin_convertvector((vi)((vu)sums[m][i] - offset), vf) * scales);
        }
    }
}

// Where the parts of a panel with groups are.
struct Parts {
    std::size_t side;
    const std::byte* weights;  // behind them
    Parts(const Matrix& w, const std::byte* panel)
        : side(w.side()), weights(panel + side * (w.asymmetric ? 2 : 1)) {}
};

// Σ q x of 4 · kNibbleDots inputs, q as it is stored, added to begin(m, i), which is asked for twice.
template <int M, int N, class Ask, class Begin>
INLINE void sum_nibbles(const std::byte* x, std::size_t x_stride, const std::byte* w, std::size_t w_stride, Ask&& ask,
                        Begin&& begin, vi (&sums)[M][N * V]) {
    vi some[M][N * V];
    for (int m = 0; m < M; ++m) {
        for (int i = 0; i < N * V; ++i) some[m][i] = begin_nibbles(begin(m, i));
    }
#pragma GCC unroll 4
    for (int step = 0; step < kNibbleDots / 2; ++step, w += 64) {
        ask(w);
        for (int i = 0; i < N * V; ++i) {
            const vi both = weights_of(w, w_stride, i, 0);
            const vi first = both & 0x0f0f0f0f, second = (vi)((vu)both >> 4) & 0x0f0f0f0f;
            for (int m = 0; m < M; ++m) {
                some[m][i] = dot_nibbles(some[m][i], first, spread_for_nibbles(x + m * x_stride + 8 * step));
            }
            for (int m = 0; m < M; ++m) {
                some[m][i] = dot_nibbles(some[m][i], second, spread_for_nibbles(x + m * x_stride + 8 * step + 4));
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int i = 0; i < N * V; ++i) sums[m][i] = end_nibbles(begin(m, i), some[m][i]);
    }
}

// A group's Σ q x, q as it is stored (int4) or too large by kOver (int8), added to begin(m).
template <bool Four, int M, int N, class Begin>
INLINE void sum_group(const std::byte* x, std::size_t x_stride, const std::byte* w, std::size_t w_stride, int inputs,
                      Begin&& begin, vi (&sums)[M][N * V]) {
    const auto ask = [&](const std::byte* at) {
        for (int n = 0; n < N; ++n) __builtin_prefetch(M == 1 ? at + kAhead : at + (n + N) * w_stride);
    };
    if constexpr (!Four) {
        for (int m = 0; m < M; ++m) {
            for (int i = 0; i < N * V; ++i) sums[m][i] = begin(m);
        }
        for (int k = 0; k < inputs; k += 4, w += 64) {
            ask(w);
            ByteWeights weights[N * V];
            for (int i = 0; i < N * V; ++i) weights[i] = byte_weights(weights_of(w, w_stride, i, 0));
            for (int m = 0; m < M; ++m) {
                const ByteInputs of_row = spread_bytes(x + m * x_stride + k);
                for (int i = 0; i < N * V; ++i) sums[m][i] = dot_bytes(sums[m][i], weights[i], of_row);
            }
        }
        return;
    }
    constexpr int kStep = 4 * kNibbleDots;
    sum_nibbles<M, N>(x, x_stride, w, w_stride, ask, [&](int m, int) { return begin(m); }, sums);
    for (int k = kStep; k < inputs; k += kStep) {
        x += kStep, w += 8 * kStep;
        sum_nibbles<M, N>(x, x_stride, w, w_stride, ask, [&](int m, int i) { return sums[m][i]; }, sums);
    }
}

// Group by group: Σ q x in integers, times the scales of the group's weights and of its inputs. What q is too large by,
// the sum of the inputs takes back; where there are minima instead, that sum is multiplied by them.
template <bool Four, bool Minima, int M, int N>
static void grouped_tile(const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    constexpr int kTooLarge = Four ? 8 : kOver;
    const std::size_t stride = w.pitch ? w.pitch : w.stride();
    const std::byte* data = w.data + panel * stride;
    const Parts parts(w, data);
    const int groups = w.groups();
    const std::byte* weights = parts.weights;
    const std::byte* x = in.data + row * in.stride;
    const std::int32_t* sums_of_x = in.sums + static_cast<std::size_t>(row) * groups;
    const float* scales_of_x = in.scales + static_cast<std::size_t>(row) * groups;
    const float* totals_of_x = in.totals + static_cast<std::size_t>(row) * groups;
    vf totals[M][N * V] = {};
    for (int g = 0; g < groups; ++g) {
        vi sums[M][N * V];
        const auto begin = [&](int m) { return Minima ? vi{} : splat(sums_of_x[m * groups + g]) * -kTooLarge; };
        sum_group<Four, M, N>(x, in.stride, weights, stride, w.group, begin, sums);
        weights += static_cast<std::size_t>(w.group) * (Four ? 8 : 16);
        x += w.group;
        for (int n = 0; n < N; ++n) {
            const std::byte* ahead = data + g * 32 + (M == 1 ? kAhead : (n + N) * stride);
            __builtin_prefetch(ahead);
            if (Minima) __builtin_prefetch(ahead + parts.side);
        }
        for (int i = 0; i < N * V; ++i) {
            const std::byte* side = data + (i / V) * stride + g * 32 + (i % V) * 2 * L;
            const vf scales = !Four && w.unscaled ? splat(1.0F) : load_f16(side);
            for (int m = 0; m < M; ++m) {
                const vf of_x = splat(scales_of_x[m * groups + g]);
                totals[m][i] += __builtin_convertvector(sums[m][i], vf) * (scales * of_x);
            }
            if (!Minima) continue;
            const vf minima = load_f16(side + parts.side);
            for (int m = 0; m < M; ++m) {
                totals[m][i] += minima * splat(totals_of_x[m * groups + g]);
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int i = 0; i < N * V; ++i) write(w, panel, to, m, i, totals[m][i]);
    }
}

// Rows in tiles of M, then of fewer, for N panels: the panels stay in the first-level cache, the rows stream past.
template <int N, int M, class T>
INLINE void columns(int row, int rows, Place to, T&& tile) {
    // 8 rows are 4 and 4: after 6, the 2 that are left would wait for their own sums.
    for (; rows >= M && !(M == 6 && (rows == 7 || rows == 8)); row += M, rows -= M, to.y += M * to.stride) {
        tile.template operator()<M>(row, to);
    }
    if constexpr (M > 1) {
        if (rows) columns<N, M == 8 || M == 6 ? 4 : M - 1>(row, rows, to, tile);
    }
}

// N panels for all rows, as many rows at once as the registers have room for.
template <int N>
static void column(const Matrix& w, const Input& in, int row, int rows, int panel, const Place& to) {
    constexpr int kFloats = kMany ? 8 : 6, kHalves = kMany ? 8 : 4;
    constexpr int kBytes = kMany ? 8 : sizeof(ByteWeights) == sizeof(vi) ? 6 : 4;
    constexpr int kGrouped = kMany ? 6 : 4;            // a tile with groups has two sums in place of one
    if (w.format == Format::f32) {
        columns<N, kFloats>(row, rows, to, [&]<int M>(int r, const Place& p) { float_tile<F32, M, N>(w, in, r, panel, p); });
    } else if (w.format == Format::bf16) {
        columns<N, kHalves>(row, rows, to, [&]<int M>(int r, const Place& p) { float_tile<Bf16, M, N>(w, in, r, panel, p); });
    } else if (!w.group) {
        columns<N, kBytes>(row, rows, to, [&]<int M>(int r, const Place& p) { int8_tile<M, N>(w, in, r, panel, p); });
    } else if (w.format == Format::int8) {
        columns<N, kGrouped>(row, rows, to, [&]<int M>(int r, const Place& p) { grouped_tile<false, false, M, N>(w, in, r, panel, p); });
    } else if (w.asymmetric) {
        columns<N, kGrouped>(row, rows, to, [&]<int M>(int r, const Place& p) { grouped_tile<true, true, M, N>(w, in, r, panel, p); });
    } else {
        columns<N, kGrouped>(row, rows, to, [&]<int M>(int r, const Place& p) { grouped_tile<true, false, M, N>(w, in, r, panel, p); });
    }
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
        } else if (w.format == Format::int8 && !w.group) {
            const int value = static_cast<int>(panel[64 + 64 * (k / 4) + 4 * lane + k % 4]) - 128;
            y[k] = static_cast<float>(value) * load<float>(panel + 4 * lane);
        } else {
            const Parts parts(w, panel);
            const bool four = w.format == Format::int4;
            const int step = four ? 8 : 4;
            const int byte = static_cast<int>(parts.weights[64 * (k / step) + 4 * lane + k % 4]);
            const int code = !four ? byte : k % 8 < 4 ? byte & 15 : byte >> 4;
            const std::byte* side = panel + (k / w.group) * 32 + (lane / L) * 2 * L;
            const float scale = load_f16(side)[lane % L];
            const float least = w.asymmetric ? load_f16(side + parts.side)[lane % L] : scale * (four ? -8.0F : -128.0F);
            y[k] = static_cast<float>(code) * scale + least;
        }
    }
}
