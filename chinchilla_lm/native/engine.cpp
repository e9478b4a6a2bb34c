#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "pass.h"

namespace chinchilla {

namespace {

// Tokens that one thread takes through all layers at once, where sequences are many: enough for the weights to come from
// a far cache only now and then, few enough for the activations to stay in a near one.
constexpr int kTileTokens = 128;
// Fewer tokens a thread than this are better shared by all threads: one sentence, answered as soon as can be.
constexpr int kLeastAlone = 48;
constexpr int kMostThreads = 1024;
// Tokens behind caches that one pass takes: more are no faster, and take more memory.
constexpr int kPassTokens = 512;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

Job job_of(const Reading& reading, std::span<const Sequence> sequences, std::span<const int> wanted, Want want,
           const Output& output) {
    return {reading.ids.data(), reading.segments, reading.targets, sequences, static_cast<int>(reading.ids.size()), wanted,
            output.rows, output.stride, output.best, want == Want::states};
}

}  // namespace

std::byte* Buffer::reserve(std::size_t bytes) {
    if (bytes > bytes_) {
        const std::size_t wanted = round_up<std::size_t>(std::max(bytes, bytes_ + bytes_ / 2), 64);
        memory_.reset();
        bytes_ = 0;
        memory_.reset(static_cast<std::byte*>(std::aligned_alloc(64, wanted)));
        if (!memory_) throw std::bad_alloc();
        std::memset(memory_.get(), 0, wanted);
        bytes_ = wanted;
    }
    return memory_.get();
}

void Buffer::Free::operator()(std::byte* memory) const { std::free(memory); }

Cache::Cache(const Program& program, int capacity) : owner_(&program), capacity_(std::min(capacity, program.max_positions)) {
    if (capacity < 1) refuse("a cache of " + std::to_string(capacity) + " positions holds nothing; pass 1 or more");
    std::size_t total = 0;
    for (const Operation& op : program.operations) {
        if (op.slot < 0) continue;
        offsets_.push_back(total);
        if (op.kind == Kind::attention) total += op.kv_heads * KeyValues::bytes(program.cache, op.head_dim, capacity_);
    }
    total = round_up<std::size_t>(total, 64);
    for (const Operation& op : program.operations) {
        if (op.kind != Kind::delta) continue;
        offsets_[op.slot] = total + remembered_;
        remembered_ += op.key_heads * memory_floats(op) * sizeof(float);
    }
    memory_.reserve(total + remembered_);
    end_ = total + remembered_;
}

std::vector<float> Cache::memories() const {
    const float* from = reinterpret_cast<const float*>(memory_.as<std::byte>() + end_ - remembered_);
    return {from, from + remembered_ / sizeof(float)};
}

void Cache::recall(const std::vector<float>& memories) {
    std::copy(memories.begin(), memories.end(), reinterpret_cast<float*>(memory_.as<std::byte>() + end_ - remembered_));
}

Engine::Engine(Program program, int threads, const char* isa)
    : program_(std::move(program)), k_(kernels_of(isa)), team_(std::clamp(threads, 1, kMostThreads)) {
    if (!k_) refuse("the instruction set " + std::string(isa ? isa : "portable") + " does not run here");
    program_.check();
    make_passes();
}

void Engine::make_passes() {
    together_ = std::make_unique<Pass>(program_, *k_, team_.size());
    for (int i = 0; i < team_.size(); ++i) alone_.push_back(std::make_unique<Pass>(program_, *k_, 1));
}

void Engine::forked() {
    together_.release();
    for (auto& pass : alone_) pass.release();
    alone_.clear();
    make_passes();
}

Engine::~Engine() = default;

std::size_t Engine::workspace_bytes() const {
    std::size_t total = together_->bytes();
    for (const auto& pass : alone_) total += pass->bytes();
    return total;
}

std::vector<double> Engine::take_seconds() {
    std::vector<double> total = together_->take_seconds();
    for (const auto& pass : alone_) {
        const std::vector<double> some = pass->take_seconds();
        for (std::size_t i = 0; i < total.size(); ++i) total[i] += some[i] / team_.size();
    }
    return total;
}

Screened Engine::take_screened() const {
    Screened total = together_->take_screened();
    for (const auto& pass : alone_) {
        const Screened some = pass->take_screened();
        total.rows += some.rows;
        total.words += some.words;
        total.panels += some.panels;
        total.whole += some.whole;
    }
    return total;
}

int Engine::output_width(Want want) const {
    if (want == Want::nats) return 1;
    return want == Want::states && program_.head.output_present ? program_.head.output.inputs : program_.output_size();
}

std::size_t Engine::output_rows(const Reading& reading, std::span<const int> counts, Want want) const {
    if (want == Want::nats) {
        return std::count_if(reading.targets, reading.targets + reading.ids.size(), [](std::int32_t one) { return one >= 0; });
    }
    if (program_.head.pooling != Pooling::none || want == Want::last || want == Want::best) return counts.size();
    std::size_t total = 0;
    for (const int count : counts) total += count;
    return total;
}

void Engine::check_want(const Reading& reading, Want want) const {
    if (want == Want::last || want == Want::all) return;
    const Head& head = program_.head;
    if (head.pooling != Pooling::none || !head.output_present) refuse("the model's outputs are not one for each token of a text");
    for (std::size_t i = 0; want == Want::nats && i < reading.ids.size(); ++i) {
        if (reading.targets[i] >= head.output.outputs) {
            refuse("target " + std::to_string(reading.targets[i]) + " is not below " + std::to_string(head.output.outputs));
        }
    }
}

std::vector<Sequence> Engine::sequences_of(const Reading& reading, std::span<const int> counts, std::span<Cache* const> caches) const {
    const auto [ids, segments, targets] = reading;
    if (counts.empty()) refuse("0 sequences; at least 1 is needed");
    if (!caches.empty() && caches.size() != counts.size()) refuse("each sequence needs a cache, or none has one");
    std::vector<Sequence> found;
    std::size_t row = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        Cache* cache = caches.empty() ? nullptr : caches[i];
        if (counts[i] < 1) refuse("sequence " + std::to_string(i) + " has no tokens; at least 1 is needed");
        if (cache && cache->owner() != &program_) refuse("the cache belongs to another model");
        if (cache && !program_.causal) refuse("a bidirectional model reads a sequence at once; pass no cache");
        if (cache && std::count(caches.begin(), caches.end(), cache) > 1) refuse("two sequences share one cache");
        const long long past = cache ? cache->length : 0, total = past + counts[i];
        const int most = cache ? std::min(cache->capacity(), program_.max_positions) : program_.max_positions;
        if (total > most) {
            refuse(std::to_string(total) + " positions do not fit the " + (cache ? "cache" : "model") + " of " +
                   std::to_string(most));
        }
        for (const Rope& rope : program_.ropes) {
            if (past && rope.switch_at && past <= rope.switch_at && total > rope.switch_at) {
                refuse(std::to_string(total) + " tokens are more than the " + std::to_string(rope.switch_at) +
                       " up to which this text was read with other angles; read it again from its start");
            }
        }
        found.push_back({static_cast<int>(row), counts[i], static_cast<int>(past), cache, static_cast<int>(total)});
        row += counts[i];
    }
    if (row != ids.size()) refuse("the sequences have " + std::to_string(row) + " tokens, " + std::to_string(ids.size()) + " were passed");
    for (const std::int32_t id : ids) {
        if (id < 0 || id >= program_.vocabulary) {
            refuse("token id " + std::to_string(id) + " is not in 0 … " + std::to_string(program_.vocabulary - 1));
        }
    }
    const int kinds = std::max(program_.embedding.segments.rows, 1);
    for (std::size_t i = 0; segments && i < ids.size(); ++i) {
        if (segments[i] < 0 || segments[i] >= kinds) refuse("segment " + std::to_string(segments[i]) + " is not below " + std::to_string(kinds));
    }
    return found;
}

void Engine::run(const Reading& reading, std::span<const int> counts, std::span<Cache* const> caches, Want want,
                 const Output& output, const std::function<void()>& breathe) {
    const std::vector<Sequence> sequences = sequences_of(reading, counts, caches);
    check_want(reading, want);
    if (want == Want::best ? !output.best : want != Want::nats && output.stride < static_cast<std::size_t>(round_up(output_width(want), kLanes))) {
        refuse("output rows are too short");
    }
    const int rows = static_cast<int>(reading.ids.size());
    if (caches.empty() && counts.size() > 1 && (team_.size() == 1 || rows >= team_.size() * kLeastAlone)) {
        return run_tiles(reading, sequences, want, output);
    }
    // A sequence without a cache cannot be cut, nor can one whose positions are pooled.
    const bool cut = !caches.empty() && std::find(caches.begin(), caches.end(), nullptr) == caches.end();
    if (cut && program_.head.pooling == Pooling::none) {
        return run_pieces(reading, sequences, want, output, breathe);
    }
    std::vector<int> wanted;
    for (const Sequence& sequence : sequences) {
        const int last = sequence.row + sequence.count - 1;
        for (int row = sequence.row; row <= last; ++row) {
            if (reading.wants(want, row, row == last)) wanted.push_back(row);
        }
    }
    run_pass(reading, sequences, wanted, want, output);
}

void Engine::run_pass(const Reading& reading, std::span<const Sequence> sequences, std::span<const int> wanted, Want want,
                      const Output& output) {
    const Job job = job_of(reading, sequences, wanted, want, output);
    together_->reserve(job);
    team_.run([&](int index, int members) { together_->run(job, {index, members, &team_.barrier()}); });
    for (const Sequence& sequence : sequences) {
        if (sequence.cache) sequence.cache->length += sequence.count;
    }
}

void Engine::run_pieces(const Reading& reading, std::vector<Sequence> sequences, Want want, Output output,
                        const std::function<void()>& breathe) {
    const std::vector<Sequence> whole = sequences;
    std::vector<std::vector<float>> memories;  // of a text that takes one pass nothing throws once it has changed
    if (program_.remembers() && reading.ids.size() > kPassTokens) {
        for (const Sequence& sequence : whole) memories.push_back(sequence.cache->memories());
    }
    std::size_t begin = 0;
    try {
        for (std::size_t next = 0; next < sequences.size();) {
            std::vector<Sequence> some;
            std::vector<int> wanted;
            int rows = 0;
            while (next < sequences.size() && rows < kPassTokens) {
                Sequence& left = sequences[next];
                const int count = std::min(left.count, kPassTokens - rows);
                some.push_back({rows, count, left.past, left.cache, left.total});
                rows += count;
                left.past += count;
                left.count -= count;
                if (!left.count) ++next;
                for (int row = rows - count; row < rows; ++row) {
                    if (reading.wants(want, static_cast<int>(begin) + row, !left.count && row == rows - 1)) wanted.push_back(row);
                }
            }
            if (begin && breathe) breathe();
            run_pass(reading.part(begin, rows), some, wanted, want, output);
            begin += rows;
            output = output.behind(wanted.size());
        }
    } catch (...) {
        for (const Sequence& sequence : whole) sequence.cache->length = sequence.past;
        for (std::size_t i = 0; i < memories.size(); ++i) whole[i].cache->recall(memories[i]);
        throw;
    }
}

// Tiles of whole sequences: each is one thread's, from the embedding to the output, and nobody waits for anybody.
void Engine::run_tiles(const Reading& reading, std::span<const Sequence> sequences, Want want, const Output& output) {
    struct Tile {
        std::vector<Sequence> sequences;
        std::vector<int> wanted;
        int begin = 0, rows = 0;     // of the whole pass
        std::size_t output_row = 0;
    };
    std::vector<Tile> tiles;
    std::size_t output_row = 0;
    for (const Sequence& sequence : sequences) {
        if (tiles.empty() || tiles.back().rows + sequence.count > kTileTokens) {
            tiles.push_back({{}, {}, sequence.row, 0, output_row});
        }
        Tile& tile = tiles.back();
        tile.sequences.push_back({tile.rows, sequence.count, 0, nullptr, sequence.total});
        const std::size_t before = tile.wanted.size();
        for (int row = 0; row < sequence.count; ++row) {
            if (reading.wants(want, sequence.row + row, row == sequence.count - 1)) tile.wanted.push_back(tile.rows + row);
        }
        tile.rows += sequence.count;
        output_row += program_.head.pooling == Pooling::none ? tile.wanted.size() - before : 1;
    }
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    team_.run([&](int index, int) {
        Barrier nobody(1);
        for (std::size_t i = next++; i < tiles.size() && !failed; i = next++) {
            const Tile& tile = tiles[i];
            const Job job = job_of(reading.part(tile.begin, tile.rows), tile.sequences, tile.wanted, want,
                                   output.behind(tile.output_row));
            try {
                alone_[index]->reserve(job);
            } catch (const std::bad_alloc&) {
                failed = true;
                return;
            }
            alone_[index]->run(job, {0, 1, &nobody});
        }
    });
    if (failed) throw std::bad_alloc();
}

}  // namespace chinchilla
