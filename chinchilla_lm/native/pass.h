// One pass through the chain, its memory, and the members of a team that share the work.
#pragma once

#include <algorithm>

#include "engine.h"

namespace chinchilla {

constexpr int kManyRows = 32;
// Rows of a part of a product whose outputs are used at once: it goes no further than the near caches.
constexpr int kPartRows = 64;

inline int padded_width(int size) { return round_up(size, kLanes); }

// A thread's place in the team that runs a pass; alone it is 0 of 1 and its barrier does nothing.
struct Member {
    int index, count;
    Barrier* barrier;
    void meet() const { barrier->wait(); }
    Share share(int things) const { return Share(things, index, count); }
    // Calls each(begin, end) for this member's part of `things`. Of many rows there is much to compute, and cores are not
    // equally fast: whoever is done takes the next, `some` or less. Of few the members wait for memory, and read one stretch each.
    // Once between two meetings.
    template <class F>
    void divide(int things, int some, int rows, F&& each) const {
        if (count == 1 || rows < kManyRows) {
            const Share mine = share(things);
            if (mine.begin < mine.end) each(mine.begin, mine.end);
        } else {
            const int part = std::clamp(things / (4 * count), 1, some);
            for (int begin; (begin = barrier->take(part)) < things;) each(begin, std::min(begin + part, things));
        }
    }
};

struct Job {
    const std::int32_t* ids;
    const std::int32_t* segments;  // or none
    const std::int32_t* targets;   // or none: see Want::nats
    std::span<const Sequence> sequences;
    int rows;
    std::span<const int> wanted;  // rows of the output where there is no pooling
    float* output;
    std::size_t stride;
    Best* best;   // or none: see Want::best
    bool states;  // see Want::states
};

// Rows whose largest outputs are looked for in the screen; of more the whole head is as well computed.
constexpr int kScreenedRows = 8;

// Keys and values of one head of one sequence, as packed matrices of at most `capacity` positions. Of int8 a key has a
// scale of its own in its panel, and so has a value, but apart: values are the inputs of their matrix.
struct KeyValues {
    std::byte *keys, *values;
    std::size_t pitch;  // bytes from panel to panel of values
    float* scales;      // of values, or none
    static std::size_t bytes(Format format, int head_dim, int capacity);  // of both
    static KeyValues at(std::byte* memory, Format format, int head_dim, int capacity);
};

// Floats of what a part of the positions gives for one query: values, and behind them the logarithm of their weight.
constexpr int part_size(int head_dim) { return round_up(head_dim, kLanes) + kLanes; }

// Floats of what the heads that share a key remember of a sequence (delta.cpp).
std::size_t memory_floats(const Operation& op);

class Pass {
public:
    Pass(const Program& program, const Kernels& kernels, int members);
    // All the memory of a job; called by one thread before all call run, which takes no more.
    void reserve(const Job& job);
    void run(const Job& job, Member me);
    std::size_t bytes() const;
    // Seconds that operations took since they were last asked for, and as the last one all else.
    std::vector<double> take_seconds();
    Screened take_screened();

private:
    struct Scratch {  // of one member
        Buffer input, tile, row, scores, probabilities, distances, screen;
        Screened screened;
    };

    // pass.cpp
    void embed(const Job& job, Member me);
    void mlp(const Operation& op, int rows, Member me);
    void activations(const Operation& op, const Input& in, int rows, const Input* to, Member me);
    void head(const Job& job, Member me);
    void head_nats(const Input& in, const Job& job, Member me);

    // screen.cpp
    struct Looked;
    void reserve_best(const Job& job);
    void best(const Input& in, float* axes, const Job& job, Member me);
    Best* bests_of(int member, int rows) const { return bests_.as<Best>() + static_cast<std::size_t>(member) * rows; }
    void screen(const Input& in, float* axes, int rows, Member me);
    void approximate(const Input& in, float* axes, int rows, Looked* looked, Member me);
    void score(const Input& in, int rows, int panel, int panels, float* y, std::size_t stride) const;
    void see(int rows, int panel, int panels, const float* y, std::size_t stride, Best* best) const;
    Input place(const Matrix& w, std::byte* memory, int rows) const;
    Input inputs(const Matrix& w, const Norm* norm, const float* x, std::size_t stride, int rows, Member me);
    void multiply(const Matrix& w, const Input& in, int rows, float* y, std::size_t stride, bool add, Member me);
    void join(const Operation& op, const Input& in, float* added, int rows, Member me);

    // delta.cpp
    void reserve_delta(const Operation& op);
    void delta(const Operation& op, const Job& job, Member me);
    void remember(const Operation& op, int head, const float* x, float* y, float* memory, float* room);

    // attention.cpp
    void reserve_attention(const Operation& op, const Job& job);
    void attention(const Operation& op, const Job& job, Member me);
    void norm_heads(const Operation& op, int rows, Member me);
    void store(const Operation& op, const Job& job, Member me);
    void attend(const Operation& op, const Job& job, Member me);
    // A part of the positions that some queries of a sequence look at.
    struct Block {
        int sequence, head, from, to, part, parts;
    };
    void add_distances(const Operation& op, const Block& block, const Sequence& sequence, int low, int high, Scratch& scratch);
    void attend_block(const Operation& op, const Job& job, const Block& block, Scratch& scratch);
    int parts_of(const Operation& op, const Job& job) const;
    float* part_of(const Operation& op, int row, int head, int part, int parts) const;
    void merge(const Operation& op, const Job& job, int parts, Member me);
    KeyValues key_values(const Operation& op, const Sequence& sequence, int index, int head) const;
    Input queries(const Operation& op) const;
    Input keys(const Operation& op) const;
    float* angles(int rope, int row) const;

    const Program& program_;
    const Kernels& k_;
    const std::size_t width_;  // floats of a row of x, padded
    std::size_t wide_ = 0;     // floats of a row of mid_ and of seen_
    int widest_ = 0;           // inputs of the widest matrix
    Buffer x_, mid_, seen_, input_, second_, queries_, keys_, angles_, passing_, parts_, nats_, outputs_, bests_;
    std::vector<std::size_t> passing_at_;  // where a sequence without a cache has its keys and values
    std::vector<int> sequence_of_;         // a row's sequence
    std::vector<Scratch> scratch_;
    std::vector<double> seconds_;
    int rows_ = 0;
};

}  // namespace chinchilla
