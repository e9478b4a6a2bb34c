// AMX: eight tiles of 16 rows × 64 bytes, which the CPU multiplies. Assembly, since the compiler's own macros for loading
// a tile do not say that it reads memory.
//
// Where CHINCHILLA_EMULATED_TILES is defined the same operations are plain C++, so that what is built on them is tested
// on a CPU without them.

struct alignas(64) TileShapes {  // what ldtilecfg reads
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};  // of a row
    std::uint8_t rows[16] = {};
    void set(int tile, int count, int row_bytes) {
        rows[tile] = static_cast<std::uint8_t>(count);
        bytes[tile] = static_cast<std::uint16_t>(row_bytes);
    }
};

#if defined(CHINCHILLA_EMULATED_TILES)

static thread_local TileShapes tile_shapes;
static thread_local std::byte tile_memory[8][16][64];

static void tiles_begin(const TileShapes& shapes) {
    tile_shapes = shapes;
    __builtin_memset(tile_memory, 0, sizeof tile_memory);
}

static void tiles_end() { tile_shapes = {}; }

static void tile_load(int t, const void* from, std::size_t stride) {
    __builtin_memset(tile_memory[t], 0, sizeof tile_memory[t]);
    for (int row = 0; row < tile_shapes.rows[t]; ++row) {
        __builtin_memcpy(tile_memory[t][row], static_cast<const std::byte*>(from) + row * stride, tile_shapes.bytes[t]);
    }
}

static void tile_store(int t, void* to, std::size_t stride) {
    for (int row = 0; row < tile_shapes.rows[t]; ++row) {
        __builtin_memcpy(static_cast<std::byte*>(to) + row * stride, tile_memory[t][row], tile_shapes.bytes[t]);
    }
}

template <class Word, class F>
static void tile_dot(int c, int a, int b, F&& product) {
    for (int m = 0; m < tile_shapes.rows[c]; ++m) {
        for (int k = 0; k < tile_shapes.bytes[a] / 4; ++k) {
            for (int n = 0; n < tile_shapes.bytes[c] / 4; ++n) {
                Word sum = load<Word>(tile_memory[c][m] + 4 * n);
                sum += product(tile_memory[a][m] + 4 * k, tile_memory[b][k] + 4 * n);
                store(tile_memory[c][m] + 4 * n, sum);
            }
        }
    }
}

static void tdpbf16ps(int c, int a, int b) {
    tile_dot<float>(c, a, b, [](const std::byte* x, const std::byte* w) {
        float total = 0.0F;
        for (int i = 0; i < 4; i += 2) {
            const std::uint32_t p = load<std::uint16_t>(x + i) << 16, q = load<std::uint16_t>(w + i) << 16;
            total += load<float>(&p) * load<float>(&q);
        }
        return total;
    });
}

static void tdpbsud(int c, int a, int b) {
    tile_dot<std::int32_t>(c, a, b, [](const std::byte* x, const std::byte* w) {
        std::int32_t total = 0;
        for (int i = 0; i < 4; ++i) total += load<signed char>(x + i) * static_cast<int>(w[i]);
        return total;
    });
}

static void tdpbssd(int c, int a, int b) {
    tile_dot<std::int32_t>(c, a, b, [](const std::byte* x, const std::byte* w) {
        std::int32_t total = 0;
        for (int i = 0; i < 4; ++i) total += load<signed char>(x + i) * load<signed char>(w + i);
        return total;
    });
}

#define TILE_LOAD(t, from, stride) tile_load(t, from, stride)
#define TILE_STORE(t, to, stride) tile_store(t, to, stride)
#define TILE_ZERO(t) __builtin_memset(tile_memory[t], 0, sizeof tile_memory[t])
#define TILE_DOT(kind, c, a, b) kind(c, a, b)

#else

static void tiles_begin(const TileShapes& shapes) { asm volatile("ldtilecfg (%0)" ::"r"(&shapes) : "memory"); }
static void tiles_end() { asm volatile("tilerelease" ::: "memory"); }

// t, c, a and b are literal digits; stride is in bytes.
#define TILE_LOAD(t, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(static_cast<long>(stride)) : "memory")
#define TILE_STORE(t, to, stride) \
    asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(static_cast<long>(stride)) : "memory")
#define TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::)
// c += a b: 16 × 64 bytes times 64 bytes × 16, four bytes (or two bfloat16) of a with four of b at a time.
#define TILE_DOT(kind, c, a, b) asm volatile(#kind " %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

#endif
