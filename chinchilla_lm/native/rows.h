// What happens to one row of floats between two products: norms, activations, softmax, rotation, rounding.
//
// Rows are whole vectors in memory (buffers are padded to 16 floats), but only `size` of their floats mean anything; the
// last vector is cut by a mask where a sum or a maximum must not see the rest.

INLINE vi lanes_below(int count) {
    vi lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    return lane < splat(count);
}

INLINE vi magnitude(vf x) { return (vi)x & 0x7fffffff; }

// e^x to two units in the last place (Cephes' polynomial), no less than e^-87 and no more than e^88; NaN of NaN.
INLINE vf exponential(vf x) {
    x = largest(splat(-87.0F), smallest(splat(88.0F), x));
    const vf whole = round_to_whole(x * 1.44269504F);
    const vf r = x - whole * 0.693359375F - whole * -2.12194440e-4F;
    vf p = splat(1.9875691500e-4F);
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    return times_power(p * r * r + r + 1.0F, whole);
}

INLINE vf hyperbolic_tangent(vf x) { return 1.0F - 2.0F * inverse(exponential(2.0F * x) + 1.0F); }

// Abramowitz and Stegun 7.1.26, |error| ≤ 1.5e-7.
INLINE vf error_function(vf x) {
    const vf size = smallest(splat(16.0F), (vf)magnitude(x));
    const vf t = inverse(1.0F + 0.3275911F * size);
    const vf p = ((((1.061405429F * t - 1.453152027F) * t + 1.421413741F) * t - 0.284496736F) * t + 0.254829592F) * t;
    const vf y = 1.0F - p * exponential(-size * size);
    return (vf)((vi)y | ((vi)x & (vi)splat(-0.0F)));
}

template <Activation A>
INLINE vf activated(vf x) {
    if constexpr (A == Activation::gelu) return 0.5F * x * (1.0F + error_function(x * 0.70710678F));
    if constexpr (A == Activation::gelu_tanh) {
        return 0.5F * x * (1.0F + hyperbolic_tangent(0.79788456F * (x + 0.044715F * x * x * x)));
    }
    if constexpr (A == Activation::relu) return choose(x > splat(0.0F), x, choose(x == x, splat(0.0F), x));
    if constexpr (A == Activation::silu) return x * inverse(1.0F + exponential(-x));
    return hyperbolic_tangent(x);
}

template <class F>
INLINE void with_activation(Activation kind, F&& body) {
    switch (kind) {
        case Activation::gelu: return body([](vf x) { return activated<Activation::gelu>(x); });
        case Activation::gelu_tanh: return body([](vf x) { return activated<Activation::gelu_tanh>(x); });
        case Activation::relu: return body([](vf x) { return activated<Activation::relu>(x); });
        case Activation::silu: return body([](vf x) { return activated<Activation::silu>(x); });
        case Activation::tanh: return body([](vf x) { return activated<Activation::tanh>(x); });
    }
}

static void activate(Activation kind, float* x, int count) {
    with_activation(kind, [&](auto act) {
        for (int i = 0; i < count; i += L) store(x + i, act(load<vf>(x + i)));
    });
}

static void gate(Activation kind, const float* x, float* y, int count) {
    with_activation(kind, [&](auto act) {
        for (int i = 0; i < count; i += kLanes) {
            for (int v = 0; v < kLanes; v += L) {
                store(y + i + v, act(load<vf>(x + 2 * i + v)) * load<vf>(x + 2 * i + kLanes + v));
            }
        }
    });
}

static void norm_row(const Norm& norm, const float* x, float* y, int size) {
    const vi tail = lanes_below(size % L ? size % L : L);
    const auto part = [&](int i) { return i + L > size ? choose(tail, load<vf>(x + i), vf{}) : load<vf>(x + i); };
    float mean = 0.0F;
    if (!norm.rms) {
        vf total = {};
        for (int i = 0; i < size; i += L) total += part(i);
        mean = sum(total) / static_cast<float>(size);
    }
    vf squares = {};
    for (int i = 0; i < size; i += L) {
        const vf off = i + L > size ? choose(tail, part(i) - mean, vf{}) : part(i) - mean;
        squares += off * off;
    }
    const float factor = 1.0F / __builtin_sqrtf(sum(squares) / static_cast<float>(size) + norm.eps);
    for (int i = 0; i < size; i += L) {
        vf value = (part(i) - mean) * factor;
        if (norm.weight) value *= load<vf>(norm.weight + i);
        if (norm.bias) value += load<vf>(norm.bias + i);
        store(y + i, i + L > size ? choose(tail, value, vf{}) : value);
    }
}

static void shift(const float* bias, float factor, float* x, int from, int to) {
    for (int i = from / L * L; i < to; i += L) store(x + i, load<vf>(x + i) + load<vf>(bias + i) * factor);
}

static void softmax(float* x, int from, int to, int padded, float scale, float* weight) {
    const vf none = splat(-__builtin_inff());
    const int begin = from / L * L, end = (to + L - 1) / L * L;
    // Of the first and the last vector only a part may be shown; what is hidden weighs nothing.
    const auto hide = [&](int i) {
        store(x + i, choose(lanes_below(to - i) & ~lanes_below(from - i), load<vf>(x + i), none));
    };
    hide(begin);
    hide(end - L);
    vf top = none;
    for (int i = begin; i < end; i += L) top = largest(load<vf>(x + i), top);
    const vf shift = splat(highest(top) * scale);
    vf total = {};
    for (int i = begin; i < end; i += L) {
        const vf raw = load<vf>(x + i), value = choose(raw == none, vf{}, exponential(raw * scale - shift));
        total += value;
        store(x + i, value);
    }
    const float all = sum(total);
    const vf factor = splat(1.0F / all);
    for (int i = 0; i < begin; i += L) store(x + i, vf{});
    for (int i = begin; i < end; i += L) store(x + i, load<vf>(x + i) * factor);
    for (int i = end; i < padded; i += L) store(x + i, vf{});
    if (weight) *weight = shift[0] + __builtin_logf(all);
}

static void tally(const float* x, int count, float* lanes) {
    for (int v = 0; v < kLanes; v += L) {
        const vf before = load<vf>(lanes + v);
        vf top = before, odd = {};
        const int whole = count / kLanes * kLanes;
        const vi shown = lanes_below(count - whole - v);  // of the last vector, which may be cut
        const vf last = whole < count ? choose(shown, load<vf>(x + whole + v), before) : before;
        const auto see = [&](vf value) {
            top = largest(value, top);
            odd += value - value;  // 0, but of what is not finite NaN
        };
        for (int i = v; i < whole; i += kLanes) see(load<vf>(x + i));
        see(last);
        vf some = odd + choose(whole < count ? shown : vi{}, exponential(last - top), vf{});
        for (int i = v; i < whole; i += kLanes) some += exponential(load<vf>(x + i) - top);
        const vf shrunk = exponential(before - top);
        const vf sum = load<vf>(lanes + kLanes + v) * shrunk, add = some - load<vf>(lanes + 2 * kLanes + v) * shrunk;
        const vf total = sum + add;
        store(lanes + v, top);
        store(lanes + kLanes + v, total);
        store(lanes + 2 * kLanes + v, (total - sum) - add);
    }
}

// To the nearest, ties to even; NaN stays NaN.
INLINE vu bf16_bits(vf x) {
    const vu bits = (vu)x;
    const vu rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    return (vu)(((vi)rounded & (x == x)) | ((vi)((bits >> 16) | 0x40U) & ~(x == x)));
}

static void to_bf16(const float* x, std::uint16_t* y, int count) {
    typedef std::uint16_t vh __attribute__((vector_size(2 * L)));
    for (int i = 0; i < count; i += L) store(y + i, __builtin_convertvector(bf16_bits(load<vf>(x + i)), vh));
}

constexpr std::int32_t kInfinity = 0x7f800000;  // bits of it; those of a magnitude that is no number are more
constexpr std::int32_t kNothing = 0x0da24260;   // bits of 1e-30: all that is smaller becomes 0, and 127 / it is a number
INLINE float as_float(std::int32_t bits) { return load<float>(&bits); }

// One group of to_int8, [from, to); `whole`: all of it is below `size`.
template <bool whole>
INLINE void group_to_int8(const float* x, int size, int from, int to, std::byte* y, float* scale, std::int32_t* sum_of,
                          float* total_of) {
    const auto part = [&](int i) {
        if (whole || i + L <= size) return load<vf>(x + i);
        return i < size ? choose(lanes_below(size - i), load<vf>(x + i), vf{}) : vf{};
    };
    vi top = {};
    for (int i = from; i < to; i += L) top = largest(magnitude(part(i)), top);
    const std::int32_t bits = highest(top);
    const float peak = as_float(bits);
    const vf factor = splat(bits < kNothing ? 0.0F : 127.0F / peak);
    vi total = {};
    for (int i = from; i < to; i += L) {
        const vi value = round_to_int(part(i) * factor);
        total = (vi)((vu)total + (vu)value);
        store_bytes(y + i, value);
    }
    // Of what is not a number nothing is.
    *scale = bits < kNothing ? 0.0F : bits < kInfinity ? peak / 127.0F : __builtin_nanf("");
    *sum_of = bits < kInfinity ? sum(total) : 0;
    *total_of = *scale * static_cast<float>(*sum_of);
}

// Symmetric, to ±127: the largest magnitude of a group becomes 127. x has `size` floats, the rest to `count` are 0; `group`
// divides `count` and is a multiple of 32. Scale and sum of the first group go to index `first`.
static void to_int8(const float* x, int size, int count, int group, std::byte* y, const Input& in, std::size_t first) {
    for (int from = 0; from < count; from += group, ++first) {
        const auto convert = from + group <= size ? group_to_int8<true> : group_to_int8<false>;
        convert(x, size, from, from + group, y, in.scales + first, in.sums + first, in.totals + first);
    }
}

static void prepare(const Matrix& w, const float* x, const Input& in, int row, int from, int to) {
    const int size = (to < w.inputs ? to : w.inputs) - from;  // the rest is padding
    std::byte* y = in.data + row * in.stride;
    if (w.format != Format::f32 && w.format != Format::bf16) {
        const int padded = w.padded(), group = w.group ? w.group : padded;
        return to_int8(x, size, to - from, group, y + from, in, static_cast<std::size_t>(row) * (padded / group) + from / group);
    }
    const int bytes = w.format == Format::f32 ? 4 : 2;
    y += static_cast<std::size_t>(from) * bytes;
    if (w.format == Format::f32) {
        for (int i = 0; i < size; i += L) store(y + 4 * i, load<vf>(x + i));
    } else {
        to_bf16(x, reinterpret_cast<std::uint16_t*>(y), size);
    }
    for (std::byte* rest = y + size * bytes; rest < y + (to - from) * bytes; ++rest) *rest = std::byte{0};
}

static void weigh(const float* weights, float* x, int from, int to) {
    for (int i = from / L * L; i < to; i += L) {
        const vi shown = lanes_below(to - i) & ~lanes_below(from - i);
        store(x + i, choose(shown, load<vf>(x + i) * load<vf>(weights + i), vf{}));
    }
}

// Two positions of bf16 share a word, or four of int8. The first of them clears the others' part, they keep what is there.
static float put_value(Format format, const float* x, std::byte* panels, std::size_t pitch, int size, int position) {
    const int shared = format == Format::int8 ? 4 : format == Format::bf16 ? 2 : 1, bits = 32 / shared;
    const int shift = bits * (position % shared);
    std::byte* line = panels + 64 * static_cast<std::size_t>(position / shared);
    const auto part = [&](int i) {
        return i + L > size ? choose(lanes_below(size - i), load<vf>(x + i), vf{}) : load<vf>(x + i);
    };
    vi top = {};
    for (int i = 0; format == Format::int8 && i < size; i += L) top = largest(magnitude(part(i)), top);
    const std::int32_t bits_of_peak = highest(top);
    const float peak = as_float(bits_of_peak), factor = bits_of_peak < kNothing ? 0.0F : 127.0F / peak;
    for (int i = 0; i < size; i += L) {
        const vf value = part(i);
        std::byte* to = line + (i / kLanes) * pitch + (i % kLanes) * 4;
        const vu before = shift ? load<vu>(to) & ((1U << shift) - 1U) : vu{};
        if (format == Format::int8) {
            store(to, before | (((vu)(round_to_int(value * factor) + 128) & 0xffU) << shift));
        } else {
            store(to, format == Format::bf16 ? before | (bf16_bits(value) << shift) : (vu)value);
        }
    }
    if (format != Format::int8) return 1.0F;
    return bits_of_peak < kNothing ? 0.0F : bits_of_peak < kInfinity ? peak / 127.0F : __builtin_nanf("");
}

static void rotate(float* x, const float* cosine, const float* sine, int half) {
    int i = 0;
    for (; i + L <= half; i += L) {
        const vf a = load<vf>(x + i), b = load<vf>(x + half + i), c = load<vf>(cosine + i), s = load<vf>(sine + i);
        store(x + i, a * c - b * s);
        store(x + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

static void add_row(const float* x, float* y, int count) {
    for (int i = 0; i < count; i += L) store(y + i, load<vf>(y + i) + load<vf>(x + i));
}

static void open_row(const float* gate, float* x, int count) {
    for (int i = 0; i < count; i += L) store(x + i, load<vf>(x + i) * inverse(exponential(-load<vf>(gate + i)) + 1.0F));
}

static void delta_step(float* memory, const float* query, const float* key, const float* value, float* y, float decay,
                       float write, int keys, int values) {
    for (int v = 0; v < values; v += L) {
        vf known = {}, read = {};
        for (int k = 0; k < keys; ++k) known += load<vf>(memory + static_cast<std::size_t>(k) * values + v) * key[k];
        const vf news = (load<vf>(value + v) - known * decay) * write;
        for (int k = 0; k < keys; ++k) {
            float* at = memory + static_cast<std::size_t>(k) * values + v;
            const vf now = load<vf>(at) * decay + news * key[k];
            store(at, now);
            read += now * query[k];
        }
        store(y + v, read);
    }
}

static void cap_row(float* x, int count, float scale, float cap) {
    if (cap == 0.0F) {
        for (int i = 0; i < count; i += L) store(x + i, load<vf>(x + i) * scale);
        return;
    }
    const float factor = scale / cap;
    for (int i = 0; i < count; i += L) store(x + i, hyperbolic_tangent(load<vf>(x + i) * factor) * cap);
}

static int largest_at(const float* x, int count) {
    vf top = splat(-__builtin_inff());
    vi at = splat(-1), index = {}, odd = {};
    for (int lane = 0; lane < L; ++lane) index[lane] = lane;
    for (int i = 0; i < count; i += L, index += splat(L)) {
        const vf value = i + L > count ? choose(lanes_below(count - i), load<vf>(x + i), top) : load<vf>(x + i);
        const vi better = value > top;
        odd |= value != value;
        top = choose(better, value, top);
        at = (index & better) | (at & ~better);
    }
    if (highest(odd & splat(1))) {
        for (int i = 0; i < count; ++i) {
            if (x[i] != x[i]) return i;
        }
    }
    int first = 0;
    float most = -__builtin_inff();
    for (int lane = 0; lane < L; ++lane) {
        if (at[lane] < 0 || top[lane] < most || (top[lane] == most && at[lane] > first)) continue;
        first = at[lane];
        most = top[lane];
    }
    return first;
}

static int within(const float* x, const float* sizes, float reach, float limit, int panels, std::uint8_t* flags) {
    vi total = {};
    for (int panel = 0; panel < panels; ++panel) {
        vi some = {};
        for (int i = panel * kLanes; i < (panel + 1) * kLanes; i += L) {
            some -= ~(vi)(load<vf>(x + i) + load<vf>(sizes + i) * reach < limit);
        }
        if (highest(some) > 0) flags[panel] = 1;
        total += some;
    }
    return sum(total);
}
