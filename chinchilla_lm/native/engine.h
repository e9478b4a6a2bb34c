// Runs a program: one pass over rows of tokens, alone or in a team, with a cache or without.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "program.h"
#include "team.h"

namespace chinchilla {

// Memory on 64 bytes that grows, never shrinks, and forgets what it held when it grows; zero when new.
class Buffer {
public:
    std::byte* reserve(std::size_t bytes);
    template <class T>
    T* reserve_of(std::size_t count) {
        return reinterpret_cast<T*>(reserve(count * sizeof(T)));
    }
    template <class T = float>
    T* as() const {
        return reinterpret_cast<T*>(memory_.get());
    }
    std::size_t bytes() const { return bytes_; }

private:
    struct Free {
        void operator()(std::byte* memory) const;
    };
    std::unique_ptr<std::byte, Free> memory_;
    std::size_t bytes_ = 0;
};

// Keys and values of what one sequence has read: a slot for each attention that is left (attention.cpp).
class Cache {
public:
    // Of `capacity` positions, or as many as the model has.
    Cache(const Program& program, int capacity);
    int capacity() const { return capacity_; }
    std::size_t bytes() const { return memory_.bytes(); }
    std::byte* slot(int index) const { return memory_.as<std::byte>() + offsets_[index]; }
    const Program* owner() const { return owner_; }
    int length = 0;
    // What cannot go back with `length`: the memories of all that was read (delta.cpp), and those that were, again.
    std::vector<float> memories() const;
    void recall(const std::vector<float>& memories);

private:
    const Program* owner_;
    int capacity_;
    std::vector<std::size_t> offsets_;
    std::size_t end_ = 0, remembered_ = 0;  // of the memory, and bytes in front of it that cannot go back
    Buffer memory_;
};

// A run of new tokens of one sequence, rows [row, row + count) of the pass, behind the `past` positions in its cache.
struct Sequence {
    int row = 0, count = 0, past = 0;
    Cache* cache = nullptr;  // none: nothing is read later
    int total = 0;           // tokens that it has once all is read that was passed with these
};

// Outputs of a model without pooling: of each sequence's last position, or of all; or, of each position that has a target,
// only -log softmax(outputs)[target], a float a row. best: of each sequence's last position only which output is the
// largest; states: of all positions what the head's last matrix is multiplied with.
enum class Want : int { last, all, nats, best, states };

// The largest output of a row, the first of several; the first NaN where there is one.
struct Best {
    std::int32_t index = -1;  // none yet
    float value = 0.0F;
    bool before(const Best& other) const;
};

// Where outputs go: rows of floats `stride` apart, or one Best a row.
struct Output {
    float* rows = nullptr;
    std::size_t stride = 0;
    Best* best = nullptr;
    Output behind(std::size_t count) const { return {rows ? rows + count * stride : nullptr, stride, best ? best + count : nullptr}; }
};

// How often the largest outputs were looked for in a smaller copy of the head's matrix (screen.cpp), and how many words and
// panels of the matrix itself were left; whole: how often no bound could be given.
struct Screened {
    long long rows = 0, words = 0, panels = 0, whole = 0;
};

// What a run reads. targets: with Want::nats, an output's index for each token, or less than 0.
struct Reading {
    std::span<const std::int32_t> ids;
    const std::int32_t* segments = nullptr;  // or none
    const std::int32_t* targets = nullptr;
    Reading part(std::size_t begin, std::size_t count) const {
        return {ids.subspan(begin, count), segments ? segments + begin : nullptr, targets ? targets + begin : nullptr};
    }
    // Whether row `row`, the last of its sequence or not, has an output.
    bool wants(Want want, int row, bool last) const {
        return want == Want::nats ? targets[row] >= 0 : want == Want::all || want == Want::states || last;
    }
};

class Pass;

class Engine {
public:
    // isa: a name of kernel_names(), or nullptr for the best. Throws std::invalid_argument for one that cannot run here,
    // std::system_error where there are no more threads.
    Engine(Program program, int threads, const char* isa);
    ~Engine();

    const Program& program() const { return program_; }
    const char* isa() const { return k_->name; }
    int threads() const { return team_.size(); }
    std::size_t workspace_bytes() const;
    // Seconds of each operation since they were last asked for, and as the last one of all else. Where threads took
    // sequences through all layers on their own, a thread's time counts by its share of them.
    std::vector<double> take_seconds();
    // In a forked child: what a pass in the parent was at is forgotten, as it may be half changed, and its memory with it.
    void forked();
    // The threads sleep until the next run, instead of waiting for it awake: other work wants the cores.
    void rest() { team_.rest(); }

    // Reads the tokens of sequences of `counts` tokens that follow each other, the i-th behind what caches[i] holds (or
    // none), which grows. Output rows are `stride` floats apart, output_rows() of them. Long texts with caches are read
    // piece by piece, with `breathe` called in between, which may throw. With Want::best there is a Best a row instead.
    // Throws std::invalid_argument for what does not fit the program or a cache; whatever is thrown, no cache has grown.
    void run(const Reading& reading, std::span<const int> counts, std::span<Cache* const> caches, Want want,
             const Output& output, const std::function<void()>& breathe = {});
    // Since it was last asked for.
    Screened take_screened() const;
    // Floats of an output row.
    int output_width(Want want) const;
    std::size_t output_rows(const Reading& reading, std::span<const int> counts, Want want) const;

private:
    void make_passes();
    std::vector<Sequence> sequences_of(const Reading& reading, std::span<const int> counts, std::span<Cache* const> caches) const;
    void check_want(const Reading& reading, Want want) const;
    void run_pass(const Reading& reading, std::span<const Sequence> sequences, std::span<const int> wanted, Want want,
                  const Output& output);
    void run_pieces(const Reading& reading, std::vector<Sequence> sequences, Want want, Output output,
                    const std::function<void()>& breathe);
    void run_tiles(const Reading& reading, std::span<const Sequence> sequences, Want want, const Output& output);

    const Program program_;
    const Kernels* k_;
    Team team_;
    std::unique_ptr<Pass> together_;
    std::vector<std::unique_ptr<Pass>> alone_;  // a pass for each thread
};

}  // namespace chinchilla
