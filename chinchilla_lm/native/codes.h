// Products with codes: what a format stores is turned into bytes in registers, stored as value + 128 like int8, and then
// multiplied like int8 with groups. pack/codes.py has the layout.
//
// A format's `each` gives a block of a panel as bytes: f(k, bytes) for the 16 outputs and 4 inputs from k on.

template <int Bits, int Dims>
struct Coded {
    static constexpr int kVectors = Bits == 3 ? 8 : Bits == 6 ? 4 : Bits == 4 ? 2 : 1;  // of codes in a block
    static constexpr int kInputs = 4 * Dims * kVectors, kEntries = Bits < 4 ? 16 : 1 << Bits;
    static constexpr std::size_t kBytes = 8 * Bits * kVectors;

    Table<kEntries> tables[Dims];

    explicit Coded(const Matrix& w) {
        for (int d = 0; d < Dims; ++d) tables[d] = Table<kEntries>::of(w.front + d * kEntries);
    }

    __attribute__((always_inline)) std::size_t bytes() const { return kBytes; }

    // The codes of vector u, as bytes.
    INLINE vi codes(const std::byte* at, int i, int u) {
        const auto part = [&](int which) { return load<vu>(at + 64 * which + 4 * L * i); };
        const auto bits = [](vu from, int shift, std::uint32_t mask) { return (vi)((shift < 0 ? from << -shift : from >> shift) & mask); };
        if constexpr (Bits == 8) return (vi)part(0);
        if constexpr (Bits == 4) return bits(part(0), 4 * u, 0x0f0f0f0fU);
        if constexpr (Bits == 6) return bits(part(u / 2), 4 * (u % 2), 0x0f0f0f0fU) | bits(part(2), 2 * u - 4, 0x30303030U);
        return bits(part(u / 4), 2 * (u % 4), 0x03030303U) | bits(part(2), u - 2, 0x04040404U);
    }

    template <class F>
    __attribute__((always_inline)) void each(const std::byte* at, F&& f) const {
#pragma GCC unroll 8
        for (int u = 0; u < kVectors; ++u) {
            vi found[V];
            for (int i = 0; i < V; ++i) found[i] = codes(at, i, u);
#pragma GCC unroll 4
            for (int d = 0; d < Dims; ++d) {
                vi weights[V];
                for (int i = 0; i < V; ++i) weights[i] = tables[d](found[i]);
                f(4 * (u * Dims + d), weights);
            }
        }
    }
};

// 64 inputs: 16 masks, and what they keep of 64 weights each, as bytes or as codes of 4 bits.
template <int Bits, int Some>
struct Kept {
    static constexpr int kInputs = 64, kMasks = 16;
    static constexpr std::size_t kBytes = kMasks * (8 + Some * Bits / 8);

    Table<16> table;

    explicit Kept(const Matrix& w) : table(Table<16>::of(Bits == 8 ? w.data : w.front)) {}

    __attribute__((always_inline)) std::size_t bytes() const { return kBytes; }

    template <class F>
    __attribute__((always_inline)) void each(const std::byte* at, F&& f) const {
        const std::byte* values = at + 8 * kMasks;
#pragma GCC unroll 2
        for (int u = 0; u < kMasks; u += 2, values += 2 * Some * Bits / 8) {
            vi first[V] = {}, second[V] = {};
            load_some<Some>(values, first);
            if constexpr (Bits == 8) {
                load_some<Some>(values + Some, second);
            } else {
                for (int i = 0; i < V; ++i) {
                    const vu both = (vu)first[i];
                    first[i] = table((vi)(both & 0x0f0f0f0fU));
                    second[i] = table((vi)(both >> 4 & 0x0f0f0f0fU));
                }
            }
            vi weights[V];
            spread_over(load<std::uint64_t>(at + 8 * u), first, weights);
            f(4 * u, weights);
            spread_over(load<std::uint64_t>(at + 8 * u + 8), second, weights);
            f(4 * u + 4, weights);
        }
    }
};

// M rows with one panel.
template <int M, class Format>
static void codes_tile(const Format& format, const Matrix& w, const Input& in, int row, int panel, const Place& to) {
    constexpr int kParts = M == 1 ? 2 : 1;  // sums of a group: a single chain would wait for each product
    const std::byte* data = w.data + panel * w.stride();
    const std::byte* at = data + w.side();
    const std::byte* x = in.data + row * in.stride;
    const int groups = w.groups();
    const std::size_t step = w.row_scales ? 0 : 2 * kLanes;
    const std::int32_t* sums_of_x = in.sums + static_cast<std::size_t>(row) * groups;
    const float* scales_of_x = in.scales + static_cast<std::size_t>(row) * groups;
    vf totals[M][V] = {};
    for (int g = 0; g < groups; ++g, x += w.group) {
        vi sums[kParts][M][V] = {};
        for (int m = 0; m < M; ++m) {
            for (int i = 0; i < V; ++i) sums[0][m][i] = splat(-kOver * sums_of_x[m * groups + g]);
        }
        for (int k = 0; k < w.group; k += Format::kInputs, at += format.bytes()) {
            for (std::size_t b = 0; M == 1 && b < format.bytes(); b += 64) __builtin_prefetch(at + b + kAhead);
            format.each(at, [&](int inner, const vi (&bytes)[V]) __attribute__((always_inline)) {
                ByteWeights weights[V];
                for (int i = 0; i < V; ++i) weights[i] = byte_weights(bytes[i]);
                for (int m = 0; m < M; ++m) {
                    const ByteInputs of_row = spread_bytes(x + m * in.stride + k + inner);
                    auto& part = sums[kParts == 2 ? inner / 4 % 2 : 0][m];
                    for (int i = 0; i < V; ++i) part[i] = dot_bytes(part[i], weights[i], of_row);
                }
            });
        }
        for (int i = 0; i < V; ++i) {
            const vf scales = load_f16(data + g * step + 2 * L * i);
            for (int m = 0; m < M; ++m) {
                const vi sum = kParts == 2 ? (vi)((vu)sums[0][m][i] + (vu)sums[kParts - 1][m][i]) : sums[0][m][i];
                totals[m][i] += __builtin_convertvector(sum, vf) * (scales * splat(scales_of_x[m * groups + g]));
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int i = 0; i < V; ++i) write(w, panel, to, m, i, totals[m][i]);
    }
}

// Bytes of a panel that are written out for many rows: they stay in the second-level cache.
constexpr std::size_t kWritten = std::size_t{1} << 16;
constexpr int kCodesTile = kMany ? 8 : 4;  // rows for which bytes are made in registers once
// Rows up to which that is faster than writing a panel out, by benchmarks/kernels.py: two tiles where look-ups are one
// instruction, one where they are several.
#if defined(CHINCHILLA_VBMI)
constexpr int kFewRows = 2 * kCodesTile;
#else
constexpr int kFewRows = kCodesTile;
#endif

// A panel as one of int8 with groups.
template <class Format>
static void write_out(const Format& format, const Matrix& w, int panel, const Matrix& as_bytes, std::byte* to) {
    const std::byte* data = w.data + panel * w.stride();
    const std::byte* at = data + w.side();
    const std::size_t step = w.row_scales ? 0 : 2 * kLanes;
    for (int g = 0; g < w.groups(); ++g) __builtin_memcpy(to + g * 2 * kLanes, data + g * step, 2 * kLanes);
    to += as_bytes.side();
    for (int k = 0; k < w.padded(); k += Format::kInputs, at += format.bytes()) {
        format.each(at, [&](int inner, const vi (&bytes)[V]) __attribute__((always_inline)) {
            std::byte* line = to + 16 * static_cast<std::size_t>(k + inner);
            for (int i = 0; i < V; ++i) store(line + 4 * L * i, bytes[i]);
        });
    }
}

template <class Format, class Multiply>
INLINE void multiply_codes_of(const Matrix& w, const Input& in, int row, int rows, int first, int panels, const Place& to, Multiply&& multiply_bytes) {
    const Format format(w);
    Matrix as_bytes = w;
    as_bytes.format = chinchilla::Format::int8;
    as_bytes.outputs = kLanes;
    if (rows <= kFewRows || as_bytes.stride() > kWritten) {
        for (int panel = 0; panel < panels; ++panel) {
            columns<1, kCodesTile>(row, rows, {to.y + panel * kLanes, to.stride, to.add}, [&]<int M>(int r, const Place& p) {
                codes_tile<M>(format, w, in, r, first + panel, p);
            });
        }
        return;
    }
    alignas(64) std::byte room[kWritten];
    as_bytes.data = room;
    for (int panel = 0; panel < panels; ++panel) {
        write_out(format, w, first + panel, as_bytes, room);
        as_bytes.bias = w.bias ? w.bias + (first + panel) * kLanes : nullptr;
        multiply_bytes(as_bytes, in, row, rows, 0, 1, to.y + panel * kLanes, to.stride, to.add);
    }
}

// Calls f with the type of a matrix of codes; reading.cpp lets no others through.
template <class F>
INLINE void with_codes(const Matrix& w, F&& f) {
    if (w.kept == 16) return f.template operator()<Kept<4, 16>>();
    if (w.kept) return w.bits == 8 ? f.template operator()<Kept<8, 32>>() : f.template operator()<Kept<4, 32>>();
    if (w.bits == 3) return f.template operator()<Coded<3, 1>>();
    if (w.bits == 6) return f.template operator()<Coded<6, 2>>();
    if (w.bits == 4) return w.dims == 1 ? f.template operator()<Coded<4, 1>>() : f.template operator()<Coded<4, 2>>();
    return w.dims == 2 ? f.template operator()<Coded<8, 2>>() : f.template operator()<Coded<8, 4>>();
}

static void multiply_codes(const Matrix& w, const Input& in, int row, int rows, int first, int panels, const Place& to,
                           decltype(Kernels::multiply) multiply_bytes) {
    with_codes(w, [&]<class Format>() {
        multiply_codes_of<Format>(w, in, row, rows, first, panels, to, multiply_bytes);
    });
}

// One output's numbers.
static void unpack_codes(const Matrix& w, int output, float* y) {
    const std::byte* panel = w.data + (output / kLanes) * w.stride();
    const std::size_t step = w.row_scales ? 0 : 2 * kLanes;
    const int lane = output % kLanes;
    with_codes(w, [&]<class Format>() {
        const Format format(w);
        const std::byte* at = panel + w.side();
        for (int k = 0; k < w.inputs; k += Format::kInputs, at += format.bytes()) {
            format.each(at, [&](int inner, const vi (&bytes)[V]) __attribute__((always_inline)) {
                std::byte found[64];
                for (int i = 0; i < V; ++i) store(found + 4 * L * i, bytes[i]);
                for (int t = 0; t < 4 && k + inner + t < w.inputs; ++t) {
                    const int group = (k + inner + t) / w.group;
                    const float scale = load_f16(panel + group * step + (lane / L) * 2 * L)[lane % L];
                    y[k + inner + t] = static_cast<float>(static_cast<int>(found[4 * lane + t]) - 128) * scale;
                }
            });
        }
    });
}
