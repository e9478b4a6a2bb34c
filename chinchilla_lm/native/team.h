// Threads that work on one pass together: each runs the same function and meets the others at barriers.
//
// A pass has hundreds of barriers a few microseconds apart, so a waiting thread spins. Between passes it spins for a
// moment (the next token is coming), then parks. A thread that waits long in a barrier lets others run: with more
// threads than cores, the one it waits for may be among them.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace chinchilla {

class Barrier {
public:
    explicit Barrier(int count) : count_(count), missing_(count) {}
    void wait();

private:
    const int count_;
    alignas(64) std::atomic<int> missing_;
    alignas(64) std::atomic<unsigned> turn_{0};
};

class Team {
public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }
    Barrier& barrier() { return barrier_; }
    // Runs job(0) here and job(1 …) on the workers; returns when all have. The job must not throw.
    void run(const std::function<void(int)>& job);
    // Until the next run the workers sleep.
    void rest() { awake_.store(false, std::memory_order_relaxed); }

private:
    void work(int index);

    Barrier barrier_, end_;
    const std::function<void(int)>* job_ = nullptr;
    alignas(64) std::atomic<unsigned> call_{0};
    std::atomic<bool> stop_{false}, awake_{true};
    std::vector<std::thread> workers_;
};

// The part [begin, end) of `count` things that member `index` of `members` does.
struct Share {
    int begin, end;
    Share(int count, int index, int members)
        : begin(static_cast<int>(static_cast<long long>(count) * index / members)),
          end(static_cast<int>(static_cast<long long>(count) * (index + 1) / members)) {}
};

}  // namespace chinchilla
