// What happens to one row of floats between two products: norms, activations, softmax, rotation, rounding.
//
// Rows are whole vectors in memory (buffers are padded to 16 floats), but only `size` of their floats mean anything; the
// last vector is cut by a mask where a sum or a maximum must not see the rest.

INLINE vi lanes_below(int count) {
    vi lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    return lane < splat(count);
}

// e^x to two units in the last place (Cephes' polynomial), no less than e^-87 and no more than e^88; NaN of NaN.
INLINE vf exponential(vf x) {
    x = choose(x > splat(88.0F), splat(88.0F), x);
    x = choose(x < splat(-87.0F), splat(-87.0F), x);
    const vi n = round_to_int(x * 1.44269504F);
    const vf whole = __builtin_convertvector(n, vf);
    const vf r = x - whole * 0.693359375F - whole * -2.12194440e-4F;
    vf p = splat(1.9875691500e-4F);
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    return p * (vf)(((vu)n + 127U) << 23);
}

INLINE vf hyperbolic_tangent(vf x) { return 1.0F - 2.0F / (exponential(2.0F * x) + 1.0F); }

// Abramowitz and Stegun 7.1.26, |error| ≤ 1.5e-7.
INLINE vf error_function(vf x) {
    const vf size = choose(x < splat(0.0F), -x, x);
    const vf t = 1.0F / (1.0F + 0.3275911F * size);
    const vf p = ((((1.061405429F * t - 1.453152027F) * t + 1.421413741F) * t - 0.284496736F) * t + 0.254829592F) * t;
    const vf y = 1.0F - p * exponential(-size * size);
    return choose(x < splat(0.0F), -y, y);
}

template <Activation A>
INLINE vf activated(vf x) {
    if constexpr (A == Activation::gelu) return 0.5F * x * (1.0F + error_function(x * 0.70710678F));
    if constexpr (A == Activation::gelu_tanh) {
        return 0.5F * x * (1.0F + hyperbolic_tangent(0.79788456F * (x + 0.044715F * x * x * x)));
    }
    if constexpr (A == Activation::relu) return choose(x > splat(0.0F), x, choose(x == x, splat(0.0F), x));
    if constexpr (A == Activation::silu) return x / (1.0F + exponential(-x));
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

static float softmax(float* x, int from, int to, int padded, float scale) {
    vf top = splat(-__builtin_inff());
    const auto shown = [&](int i) { return lanes_below(to - i) & ~lanes_below(from - i); };
    const int begin = from / L * L;
    for (int i = begin; i < to; i += L) top = largest(choose(shown(i), load<vf>(x + i), splat(-__builtin_inff())), top);
    const vf shift = splat(highest(top) * scale);
    vf total = {};
    for (int i = begin; i < to; i += L) {
        const vf value = choose(shown(i), exponential(load<vf>(x + i) * scale - shift), vf{});
        total += value;
        store(x + i, value);
    }
    const float all = sum(total);
    const vf factor = splat(1.0F / all);
    for (int i = 0; i < begin; i += L) store(x + i, vf{});
    for (int i = begin; i < to; i += L) store(x + i, load<vf>(x + i) * factor);
    for (int i = (to + L - 1) / L * L; i < padded; i += L) store(x + i, vf{});
    return shift[0] + __builtin_logf(all);
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

INLINE vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

// Symmetric, to ±127: the largest magnitude of a group becomes 127. x has `size` floats, the rest to `count` are 0; `group`
// divides `count` and is a multiple of 32. Scale and sum of the first group go to index `first`.
static void to_int8(const float* x, int size, int count, int group, std::byte* y, const Input& in, std::size_t first) {
    typedef signed char vb __attribute__((vector_size(L)));
    for (int begin = 0; begin < count; begin += group, ++first) {
        const auto part = [&](int i) {
            if (i + L <= size) return load<vf>(x + i);
            return i < size ? choose(lanes_below(size - i), load<vf>(x + i), vf{}) : vf{};
        };
        const int end = begin + group;
        vf top = {};
        for (int i = begin; i < end; i += L) top = largest(magnitude(part(i)), top);
        const float peak = highest(top);
        const vf factor = splat(peak > 0.0F ? 127.0F / peak : 0.0F);
        vu total = {};
        vf nothing = {};
        for (int i = begin; i < end; i += L) {
            const vf scaled = part(i) * factor;
            const vi value = round_to_int(scaled);
            total += (vu)value;
            nothing += scaled * 0.0F;
            store(y + i, __builtin_convertvector(value, vb));
        }
        const bool numbers = sum(nothing) == 0.0F;  // else what comes out is not a number either
        in.scales[first] = numbers ? peak / 127.0F : __builtin_nanf("");
        in.sums[first] = numbers ? sum((vi)total) : 0;
    }
}

static void prepare(const Matrix& w, const float* x, const Input& in, int row, int from, int to) {
    const int size = (to < w.inputs ? to : w.inputs) - from;  // the rest is padding
    std::byte* y = in.data + row * in.stride;
    if (w.format == Format::int8 || w.format == Format::int4) {
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

// bf16: two positions share a word. The first of them clears the other half, the second keeps the first.
static void put_value(Format format, const float* x, std::byte* panels, std::size_t pitch, int size, int position) {
    const bool bf16 = format == Format::bf16, second = bf16 && position % 2;
    std::byte* line = panels + 64 * static_cast<std::size_t>(bf16 ? position / 2 : position);
    for (int i = 0; i < size; i += L) {
        const vf value = i + L > size ? choose(lanes_below(size - i), load<vf>(x + i), vf{}) : load<vf>(x + i);
        std::byte* to = line + (i / kLanes) * pitch + (i % kLanes) * 4;
        if (!bf16) {
            store(to, value);
        } else if (second) {
            store(to, (load<vu>(to) & 0xffffU) | (bf16_bits(value) << 16));
        } else {
            store(to, bf16_bits(value));
        }
    }
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

static float largest_of(const float* x, int count, int* where) {
    *where = 0;
    float best = x[0];
    for (int i = 0; i < count; ++i) {
        if (!(x[i] == x[i])) return *where = i, x[i];
        if (x[i] > best) best = x[i], *where = i;
    }
    return best;
}
