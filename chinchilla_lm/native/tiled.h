// Products of many rows in AMX tiles. A panel of weights is a column of right-hand tiles as it stands in memory.

constexpr int kTileRows = 16;
constexpr int kLeastTileRows = 8;  // fewer are left to vectors: weights come from memory slower than they are multiplied
// Of groups of 64, whose sums leave the tile so often that vectors multiply 8 rows 1.7 times as fast, 16 rows 1.2 times,
// 32 rows 0.7 times (measured on Sapphire Rapids). With groups of 32 vectors are as fast even for 512 rows.
constexpr int kLeastGroupedRows = 24;

// Sums of up to 32 rows × 2 panels, 32-bit words [32][32], over `steps` of 64 bytes of a row.
#define SUM_TILES(kind)                                                \
    TILE_ZERO(0);                                                      \
    if (two) TILE_ZERO(1);                                             \
    if (more) TILE_ZERO(2);                                            \
    if (two && more) TILE_ZERO(3);                                     \
    for (int step = 0; step < steps; ++step) {                         \
        TILE_LOAD(6, w + 1024 * static_cast<std::size_t>(step), 64);   \
        TILE_LOAD(4, x + 64 * step, x_stride);                         \
        TILE_DOT(kind, 0, 4, 6);                                       \
        if (two) {                                                     \
            TILE_LOAD(7, w + w_stride + 1024 * static_cast<std::size_t>(step), 64); \
            TILE_DOT(kind, 1, 4, 7);                                   \
        }                                                              \
        if (more) {                                                    \
            TILE_LOAD(5, x + kTileRows * x_stride + 64 * step, x_stride); \
            TILE_DOT(kind, 2, 5, 6);                                   \
            if (two) TILE_DOT(kind, 3, 5, 7);                          \
        }                                                              \
    }                                                                  \
    TILE_STORE(0, sums, 128);                                          \
    if (two) TILE_STORE(1, sums + 64, 128);                            \
    if (more) TILE_STORE(2, sums + kTileRows * 128, 128);              \
    if (two && more) TILE_STORE(3, sums + kTileRows * 128 + 64, 128);

template <bool two, bool more>
static void sum_bf16(const std::byte* x, std::size_t x_stride, const std::byte* w, std::size_t w_stride, int steps, std::byte* sums) {
    SUM_TILES(tdpbf16ps)
}

template <bool two, bool more>
static void sum_bytes(const std::byte* x, std::size_t x_stride, const std::byte* w, std::size_t w_stride, int steps, std::byte* sums) {
    SUM_TILES(tdpbsud)
}

#undef SUM_TILES

// Tiles for a block of rows: 0 … 3 sums, 4 and 5 rows of inputs, 6 and 7 weights. 64 bytes of a row make a step.
static TileShapes shapes_of(int rows) {
    TileShapes shapes;
    const int first = rows < kTileRows ? rows : kTileRows, second = rows - first;
    for (int t = 0; t < 4; ++t) shapes.set(t, t < 2 || !second ? first : second, 64);
    shapes.set(4, first, 64);
    shapes.set(5, second ? second : first, 64);
    shapes.set(6, 16, 64);
    shapes.set(7, 16, 64);
    return shapes;
}

// bf16, and int8 with one scale a row: two panels at a time for all rows, 32 of them at a time.
static void plain_tiles(const Matrix& w, const Input& in, int row, int rows, int first, int panels, const Place& all) {
    constexpr int kBlock = 2 * kTileRows;
    alignas(64) std::byte sums[kBlock * 128];
    const bool bytes = w.format == Format::int8;
    const std::size_t stride = w.pitch ? w.pitch : w.stride();
    const int steps = static_cast<int>(w.row_bytes() / 64);
    int shaped = 0;
    for (int panel = first; panel < first + panels; panel += 2) {
        const bool two = panel + 1 < first + panels;
        const std::byte* data = w.data + panel * stride;
        for (int at = 0; at < rows; at += kBlock) {
            const int count = rows - at < kBlock ? rows - at : kBlock;
            if (count != shaped) tiles_begin(shapes_of(shaped = count));
            const auto sum = bytes ? two ? count > kTileRows ? sum_bytes<true, true> : sum_bytes<true, false>
                                         : count > kTileRows ? sum_bytes<false, true> : sum_bytes<false, false>
                             : two ? count > kTileRows ? sum_bf16<true, true> : sum_bf16<true, false>
                                   : count > kTileRows ? sum_bf16<false, true> : sum_bf16<false, false>;
            sum(in.data + (row + at) * in.stride, in.stride, data + (bytes ? 64 : 0), stride, steps, sums);
            const Place to{all.y + at * all.stride + (panel - first) * kLanes, all.stride, all.add};
            for (int i = 0; i < (two ? 2 : 1); ++i) {
                const vf scales = bytes ? load<vf>(data + i * stride) : vf{};
                for (int m = 0; m < count; ++m) {
                    const std::byte* from = sums + m * 128 + i * 64;
                    if (!bytes) {
                        write(w, panel, to, m, i, load<vf>(from));
                        continue;
                    }
                    const vi exact = load<vi>(from) - splat(128 * in.sums[row + at + m]);
                    write(w, panel, to, m, i, __builtin_convertvector(exact, vf) * (scales * splat(in.scales[row + at + m])));
                }
            }
        }
    }
}

// A part of a panel with groups as signed bytes, in the order in which tiles take them: [inputs/4][16][4].
static void to_signed(const Matrix& w, const std::byte* weights, int inputs, std::byte* to) {
    const bool four = w.format == Format::int4;
    const int step = four ? 8 : 4;
    for (int k = 0; k < inputs; k += step, weights += 64, to += 16 * step) {
        const vi both = load<vi>(weights);
        if (!four) {
            store(to, (vi)((vu)both ^ 0x80808080U));
            continue;
        }
        const vi low = both & 0x0f0f0f0f, high = (vi)((vu)both >> 4) & 0x0f0f0f0f;
        // Bytes below 16 less 8, four at a time: no byte borrows from the next once its top bit is set.
        const auto centred = [](vi q) { return (vi)((((vu)q | 0x80808080U) - 0x08080808U) ^ 0x80808080U); };
        store(to, w.asymmetric ? low : centred(low));
        store(to + 64, w.asymmetric ? high : centred(high));
    }
}

// Inputs that one pass over the rows takes: the signed bytes of a panel's part stay in the first-level cache.
constexpr int kChunk = 1024;

// Groups [from, to) of a panel for up to 16 rows: each group's sums in a tile, then times its scales.
template <bool Full>
static void group_tiles(const Matrix& w, const Input& in, int row, int rows, const std::byte* panel, const std::byte* weights,
                        int from, int to, vf (&totals)[kTileRows]) {
    alignas(64) std::byte sums[4][kTileRows * 64];
    const int groups = w.groups(), count = Full ? kTileRows : rows;
    const Parts parts(w, panel);
    const std::byte* x = in.data + row * in.stride + static_cast<std::size_t>(from) * w.group;
#define GROUP(c, a, b)                                                                                \
    if (g + c < to) {                                                                                 \
        TILE_ZERO(c);                                                                                 \
        for (int k = (g + c - from) * w.group, end = k + w.group; k < end; k += 64) {                 \
            TILE_LOAD(b, weights + 16 * static_cast<std::size_t>(k), 64);                             \
            TILE_LOAD(a, x + k, in.stride);                                                           \
            TILE_DOT(tdpbssd, c, a, b);                                                               \
        }                                                                                             \
        TILE_STORE(c, sums[c], 64);                                                                   \
    }
    for (int g = from; g < to; g += 4) {
        GROUP(0, 4, 6)
        GROUP(1, 5, 7)
        GROUP(2, 4, 6)
        GROUP(3, 5, 7)
        for (int i = 0; i < 4 && g + i < to; ++i) {
            const vf scales = w.unscaled ? splat(1.0F) : load_f16(panel + (g + i) * 32);
            const vf minima = w.asymmetric ? load_f16(panel + parts.side + (g + i) * 32) : vf{};
            const float* scales_of_x = in.scales + static_cast<std::size_t>(row) * groups + g + i;
            const float* totals_of_x = in.totals + static_cast<std::size_t>(row) * groups + g + i;
            for (int m = 0; m < count; ++m) {
                const float of_x = scales_of_x[m * groups];
                totals[m] += __builtin_convertvector(load<vi>(sums[i] + 64 * m), vf) * (scales * splat(of_x));
                if (w.asymmetric) totals[m] += minima * splat(totals_of_x[m * groups]);
            }
        }
    }
#undef GROUP
}

static void grouped_tiles(const Matrix& w, const Input& in, int row, int rows, int first, int panels, const Place& all) {
    alignas(64) std::byte weights[kChunk * kLanes];
    const std::size_t stride = w.pitch ? w.pitch : w.stride();
    const int inputs = w.padded(), chunk = kChunk / w.group * w.group;
    Matrix plain = w;
    plain.bias = nullptr;
    int shaped = 0;
    for (int panel = first; panel < first + panels; ++panel) {
        const std::byte* data = w.data + panel * stride;
        const Parts parts(w, data);
        for (int k = 0; k < inputs; k += chunk) {
            const int end = k + chunk < inputs ? k + chunk : inputs;
            to_signed(w, parts.weights + static_cast<std::size_t>(k) * (w.format == Format::int4 ? 8 : 16), end - k, weights);
            for (int at = 0; at < rows; at += kTileRows) {
                const int count = rows - at < kTileRows ? rows - at : kTileRows;
                if (count != shaped) tiles_begin(shapes_of(shaped = count));
                vf totals[kTileRows] = {};
                const auto sum = count == kTileRows ? group_tiles<true> : group_tiles<false>;
                sum(w, in, row + at, count, data, weights, k / w.group, end / w.group, totals);
                const Place to{all.y + at * all.stride + (panel - first) * kLanes, all.stride, all.add || k > 0};
                for (int m = 0; m < count; ++m) write(k > 0 ? plain : w, panel, to, m, 0, totals[m]);
            }
        }
    }
}

static void multiply_tiled(const Matrix& w, const Input& in, int row, int rows, int first, int panels, float* y,
                           std::size_t y_stride, bool add) {
    const bool bytes = w.format == Format::int8 || w.format == Format::int4;
    const int least = w.group == 64 ? kLeastGroupedRows : kLeastTileRows;
    if (rows < least || w.format == Format::f32 || (bytes && (w.group > kChunk || w.group % 64))) {
        return multiply(w, in, row, rows, first, panels, y, y_stride, add);
    }
    const Place to{y, y_stride, add};
    if (w.group) {
        grouped_tiles(w, in, row, rows, first, panels, to);
    } else {
        plain_tiles(w, in, row, rows, first, panels, to);
    }
    tiles_end();
}
