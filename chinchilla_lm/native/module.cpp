// The engine as a Python module. It takes and gives NumPy arrays, and knows nothing of models or files.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <thread>

#include "engine.h"
#include "merges.h"
#include "packing.h"
#include "reading.h"

namespace nb = nanobind;
using namespace chinchilla;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Array = nb::ndarray<nb::numpy, float>;

std::span<const std::byte> span_of(const Bytes& data) {
    if (reinterpret_cast<std::uintptr_t>(data.data()) % 64) throw std::invalid_argument("the program's bytes do not begin on 64 bytes");
    return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

struct Rows {  // of floats on 64 bytes, that a NumPy array will own
    std::size_t count, stride;
    float* data;
    Rows(std::size_t count, std::size_t width)
        : count(count), stride(round_up<std::size_t>(width, kLanes)),
          data(static_cast<float*>(std::aligned_alloc(64, std::max<std::size_t>(count * stride * 4, 64)))) {
        if (!data) throw std::bad_alloc();
    }
    Array array(std::size_t width) const {
        const nb::capsule owner(data, [](void* memory) noexcept { std::free(memory); });
        return Array(data, {count, width}, owner, {static_cast<std::int64_t>(stride), 1});
    }
};

// An engine that calls take turns at: its memory is one pass's.
struct Runner {
    nb::object data;  // keeps the bytes that the program points into
    Engine engine;
    std::mutex turn;
    std::atomic<std::thread::id> owner{};  // whose turn it is
    pid_t process = getpid();

    Runner(const nb::dict& header, const Bytes& bytes, int threads, const std::optional<std::string>& isa)
        : data(nb::cast(bytes)), engine(read_program(header, span_of(bytes)), threads, isa ? isa->c_str() : nullptr) {}

    // What f(engine) gives, when nobody else is at it; other Python threads go on meanwhile.
    template <class F>
    auto alone(F&& f) {
        if (process != getpid()) {  // forked: whoever had the turn there is not here
            new (&turn) std::mutex;
            owner = std::thread::id();
            engine.forked();
            process = getpid();
        }
        if (owner == std::this_thread::get_id()) {
            throw std::runtime_error("the session is at work in this very thread; a signal handler cannot use it");
        }
        const nb::gil_scoped_release released;
        const std::lock_guard<std::mutex> mine(turn);
        struct Mark {
            std::atomic<std::thread::id>& owner;
            explicit Mark(std::atomic<std::thread::id>& owner) : owner(owner) { owner = std::this_thread::get_id(); }
            ~Mark() { owner = std::thread::id(); }
        } mark(owner);
        return f(engine);
    }
};

struct RunnerCache {
    std::shared_ptr<Runner> runner;
    Cache cache;
    RunnerCache(std::shared_ptr<Runner> runner, int capacity) : runner(runner), cache(runner->engine.program(), capacity) {}
};

std::vector<Cache*> caches_in(const std::vector<RunnerCache*>& caches) {
    std::vector<Cache*> inside;
    for (RunnerCache* cache : caches) {
        if (!cache) throw std::invalid_argument("a cache is None; pass one for each sequence, or none at all");
        inside.push_back(&cache->cache);
    }
    return inside;
}

void check_counts(const std::vector<int>& counts) {
    for (const int count : counts) {
        if (count < 1) throw std::invalid_argument("a sequence has no tokens; at least 1 is needed");
    }
}

void breathe() {  // Ctrl-C
    const nb::gil_scoped_acquire held;
    if (PyErr_CheckSignals()) throw nb::python_error();
}

Array run(Runner& runner, const Ids& ids, const std::vector<int>& counts, const std::vector<RunnerCache*>& caches,
          const std::optional<Ids>& segments, bool all) {
    if (segments && segments->size() != ids.size()) throw std::invalid_argument("segments are not as many as token ids");
    const std::vector<Cache*> inside = caches_in(caches);
    const std::size_t width = runner.engine.program().output_size();
    const Want want = all ? Want::all : Want::last;
    check_counts(counts);
    const Reading reading{{ids.data(), ids.size()}, segments ? segments->data() : nullptr};
    const Rows rows(runner.engine.output_rows(reading, counts, want), width);
    Array result = rows.array(width);
    runner.alone([&](Engine& engine) {
        engine.run(reading, counts, inside, want, {rows.data, rows.stride}, breathe);
    });
    return result;
}

// Of each sequence the index of its largest output, and that output: of each the first, as NumPy's argmax has it.
nb::tuple best(Runner& runner, const Ids& ids, const std::vector<int>& counts, const std::vector<RunnerCache*>& caches) {
    const std::vector<Cache*> inside = caches_in(caches);
    check_counts(counts);
    std::vector<Best> found(counts.size());
    const Reading reading{{ids.data(), ids.size()}};
    runner.alone([&](Engine& engine) {
        engine.run(reading, counts, inside, Want::best, {nullptr, 0, found.data()}, breathe);
    });
    const Rows values(1, found.size());
    Array outputs = values.array(found.size());
    const auto indices = new std::vector<std::int32_t>(found.size());
    const nb::capsule owner(indices, [](void* memory) noexcept { delete static_cast<std::vector<std::int32_t>*>(memory); });
    for (std::size_t i = 0; i < found.size(); ++i) {
        (*indices)[i] = found[i].index;
        values.data[i] = found[i].value;
    }
    return nb::make_tuple(nb::ndarray<nb::numpy, std::int32_t>(indices->data(), {found.size()}, owner), outputs);
}

Array states(Runner& runner, const Ids& ids, const std::vector<int>& counts) {
    check_counts(counts);
    const std::size_t width = runner.engine.output_width(Want::states);
    const Reading reading{{ids.data(), ids.size()}};
    const Rows rows(runner.engine.output_rows(reading, counts, Want::states), width);
    Array result = rows.array(width);
    runner.alone([&](Engine& engine) { engine.run(reading, counts, {}, Want::states, {rows.data, rows.stride}); });
    return result;
}

Array nats(Runner& runner, const Ids& ids, const std::vector<int>& counts, const Ids& targets) {
    if (targets.size() != ids.size()) throw std::invalid_argument("targets are not as many as token ids");
    const Reading reading{{ids.data(), ids.size()}, nullptr, targets.data()};
    const Rows rows(runner.engine.output_rows(reading, counts, Want::nats), 1);
    Array result = rows.array(1);
    runner.alone([&](Engine& engine) { engine.run(reading, counts, {}, Want::nats, {rows.data, rows.stride}); });
    return result;
}

// The list is alive while this runs, and with it the text that the views are of; other Python threads go on meanwhile.
nb::ndarray<nb::numpy, std::int32_t> merges(const std::vector<std::string_view>& tokens, const Floats& scores) {
    const auto find = [&] {
        const nb::gil_scoped_release released;
        return new std::vector<std::int32_t>(last_merges(tokens, {scores.data(), scores.size()}));
    };
    std::vector<std::int32_t>* found = find();
    const nb::capsule owner(found, [](void* memory) noexcept { delete static_cast<std::vector<std::int32_t>*>(memory); });
    return nb::ndarray<nb::numpy, std::int32_t>(found->data(), {found->size()}, owner);
}

using Room = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRoom = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void decode(const Bytes& blocks, const FloatRoom& y) {
    if (blocks.size() % 34 || blocks.size() / 34 * 32 != y.size()) throw std::invalid_argument("the room is not that of the blocks");
    const std::uint8_t* const from = blocks.data();
    float* const to = y.data();
    const nb::gil_scoped_release released;
    decode_q8_0(from, blocks.size() / 34, to);
}

void pack_halves(const Floats& x, const Room& y) {
    if (x.ndim() != 2) throw std::invalid_argument("x is no matrix");
    const int rows = static_cast<int>(x.shape(0)), inputs = static_cast<int>(x.shape(1));
    const std::size_t bytes = static_cast<std::size_t>(round_up(rows, kLanes)) * round_up(inputs, 32) * 2;
    if (y.size() != bytes || reinterpret_cast<std::uintptr_t>(y.data()) % 4) throw std::invalid_argument("the room is not that of x");
    const float* const from = x.data();
    std::uint16_t* const to = reinterpret_cast<std::uint16_t*>(y.data());
    const nb::gil_scoped_release released;
    pack_bf16(from, rows, inputs, to);
}

void find_nearest(const Floats& x, const Floats& book, const Room& codes) {
    if (x.ndim() != 2 || book.ndim() != 2 || x.shape(1) != book.shape(0) || codes.size() != x.shape(0)) {
        throw std::invalid_argument("vectors, codebook and room for codes do not fit together");
    }
    const int dims = static_cast<int>(book.shape(0)), entries = static_cast<int>(book.shape(1));
    if (dims < 1 || dims > 4 || entries < 8 || entries > 256 || entries % 8) throw std::invalid_argument("the codebook is none of ours");
    const float* const from = x.data();
    const float* const entry = book.data();
    std::uint8_t* const to = codes.data();
    const std::size_t count = x.shape(0);
    const nb::gil_scoped_release released;
    nearest_entries(from, count, dims, entry, entries, to);
}

const Kernels& kernels_named(const std::string& isa) {
    const Kernels* found = kernels_of(isa.c_str());
    if (!found) throw std::invalid_argument("the instruction set " + isa + " does not run here");
    return *found;
}

// Single kernels, for tests and for the roof of products: rows of x come padded to 16 floats.

Array multiply(const std::string& isa, const nb::dict& header, const Bytes& bytes, const Floats& x) {
    const Kernels& k = kernels_named(isa);
    const Matrix w = read_matrix(header, span_of(bytes));
    if (x.ndim() != 2 || x.shape(1) != static_cast<std::size_t>(round_up(w.inputs, kLanes))) throw std::invalid_argument("x does not fit");
    const int count = static_cast<int>(x.shape(0));
    Buffer prepared, scales, sums, totals;
    Input in;
    in.stride = w.row_bytes();
    in.data = prepared.reserve(in.stride * count + 64);
    in.scales = scales.reserve_of<float>(static_cast<std::size_t>(count) * w.groups());
    in.sums = sums.reserve_of<std::int32_t>(static_cast<std::size_t>(count) * w.groups());
    in.totals = totals.reserve_of<float>(static_cast<std::size_t>(count) * w.groups());
    const float* const from = x.data();
    const Rows y(count, w.outputs);
    Array result = y.array(w.outputs);
    {
        const nb::gil_scoped_release released;  // several threads may each multiply rows of their own
        const std::size_t width = round_up(w.inputs, kLanes);
        for (int row = 0; row < count; ++row) k.prepare(w, from + row * width, in, row, 0, w.padded());
        k.multiply(w, in, 0, count, 0, w.panels(), y.data, y.stride, false);
    }
    return result;
}

Array unpack(const std::string& isa, const nb::dict& header, const Bytes& bytes) {
    const Kernels& k = kernels_named(isa);
    const Matrix w = read_matrix(header, span_of(bytes));
    const Rows y(w.outputs, w.inputs);
    Array result = y.array(w.inputs);
    for (int output = 0; output < w.outputs; ++output) k.unpack_row(w, output, y.data + output * y.stride);
    return result;
}

// One row through a kernel: what = norm, rms, softmax, rotate, cap or the name of an activation.
Array transform(const std::string& isa, const std::string& what, const Floats& x, int size, float number) {
    const Kernels& k = kernels_named(isa);
    const int width = static_cast<int>(x.size());
    if (width % kLanes || size < 1 || size > width) throw std::invalid_argument("x is not padded to 16 floats");
    const Rows y(1, width);
    Array result = y.array(width);
    std::copy_n(x.data(), width, y.data);
    if (what == "norm" || what == "rms") {
        k.norm({true, what == "rms", number, nullptr, nullptr}, y.data, y.data, size);
    } else if (what == "softmax") {
        k.softmax(y.data, 0, size, width, number, nullptr);
    } else if (what == "shift") {
        k.shift(x.data(), number, y.data, 0, size);
    } else if (what == "cap") {
        k.cap(y.data, width, 1.0F, number);
    } else if (what == "rotate") {
        Rows angles(2, width);
        const Array owner = angles.array(width);
        for (int i = 0; i < size / 2; ++i) {
            angles.data[i] = std::cos(number * static_cast<float>(i));
            angles.data[angles.stride + i] = std::sin(number * static_cast<float>(i));
        }
        k.rotate(y.data, angles.data, angles.data + angles.stride, size / 2);
    } else {
        k.activate(read_activation(what), y.data, width);
    }
    return result;
}

}  // namespace

NB_MODULE(_engine, m) {
    m.doc() = "Chinchilla's CPU engine.";
    m.def("kernel_names", [] {
        std::vector<std::string> names;
        for (const char* const* name = kernel_names(); *name; ++name) names.emplace_back(*name);
        return names;
    });
    nb::class_<Runner>(m, "Engine")
        .def(nb::init<const nb::dict&, const Bytes&, int, const std::optional<std::string>&>(), nb::arg("header"),
             nb::arg("data"), nb::arg("threads"), nb::arg("isa").none() = nb::none())
        .def("run", &run, nb::arg("ids"), nb::arg("counts"), nb::arg("caches") = std::vector<RunnerCache*>{},
             nb::arg("segments").none() = nb::none(), nb::arg("all") = false)
        .def("nats", &nats, nb::arg("ids"), nb::arg("counts"), nb::arg("targets"))
        .def("best", &best, nb::arg("ids"), nb::arg("counts"), nb::arg("caches") = std::vector<RunnerCache*>{})
        .def("states", &states, nb::arg("ids"), nb::arg("counts"))
        .def("take_screened", [](Runner& runner) {
            const Screened found = runner.alone([](Engine& engine) { return engine.take_screened(); });
            return nb::make_tuple(found.rows, found.words, found.panels, found.whole);
        })
        .def("take_seconds", [](Runner& runner) { return runner.alone([](Engine& engine) { return engine.take_seconds(); }); })
        .def("rest", [](Runner& runner) { runner.engine.rest(); })
        .def_prop_ro("isa", [](const Runner& runner) { return runner.engine.isa(); })
        .def_prop_ro("threads", [](const Runner& runner) { return runner.engine.threads(); })
        .def_prop_ro("workspace_bytes", [](Runner& runner) {
            return runner.alone([](const Engine& engine) { return engine.workspace_bytes(); });
        });
    nb::class_<RunnerCache>(m, "Cache")
        .def(nb::init<std::shared_ptr<Runner>, int>(), nb::arg("engine"), nb::arg("capacity"))
        .def_prop_ro("length", [](const RunnerCache& cache) {
            return cache.runner->alone([&](const Engine&) { return cache.cache.length; });
        })
        .def_prop_ro("capacity", [](const RunnerCache& cache) { return cache.cache.capacity(); })
        .def_prop_ro("bytes", [](const RunnerCache& cache) { return cache.cache.bytes(); })
        .def("rewind", [](RunnerCache& cache, int length) {
            cache.runner->alone([&](const Engine&) {
                if (length < 0 || length > cache.cache.length) throw std::invalid_argument("a cache can only forget");
                if (length && length < cache.cache.length && cache.runner->engine.program().remembers()) {
                    throw std::invalid_argument("a cache of what was read on the whole forgets all or nothing");
                }
                cache.cache.length = length;
            });
        }, nb::arg("length"));
    m.def("last_merges", &merges, nb::arg("tokens"), nb::arg("scores"));
    m.def("decode_q8_0", &decode, nb::arg("blocks"), nb::arg("y"));
    m.def("pack_bf16", &pack_halves, nb::arg("x"), nb::arg("y"));
    m.def("nearest", &find_nearest, nb::arg("x"), nb::arg("book"), nb::arg("codes"));
    m.def("multiply", &multiply, nb::arg("isa"), nb::arg("matrix"), nb::arg("data"), nb::arg("x"));
    m.def("unpack", &unpack, nb::arg("isa"), nb::arg("matrix"), nb::arg("data"));
    m.def("transform", &transform, nb::arg("isa"), nb::arg("what"), nb::arg("x"), nb::arg("size"), nb::arg("number"));
}
