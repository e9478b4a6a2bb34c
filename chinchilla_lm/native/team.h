// Threads that work on one pass together: each runs the same function and meets the others at barriers.
//
// A pass has hundreds of barriers a few microseconds apart, so a waiting thread spins. Between passes it spins for a
// moment (the next token is coming), then parks. A thread that waits long in a barrier lets others run: with more
// threads than cores, the one it waits for may be among them.
//
// Where another program takes a core, the member that ran there holds up all the others at every barrier. The team sees
// how much it loses so, and goes on with a member less until it is time to try again.
//
// A fork takes the memory along but not the threads: in the child the team starts others.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

namespace chinchilla {

using Clock = std::chrono::steady_clock;

class Barrier {
public:
    explicit Barrier(int count) : count_(count), missing_(count) {}
    void wait();
    // For so many from now on; nobody may be waiting.
    void open(int count);
    // The first of the next `some` things that nobody has taken since all met.
    int take(int some) { return taken_.fetch_add(some, std::memory_order_relaxed); }
    // What those who wait have lost in waits too long for a difference in work, since it was last asked for.
    Clock::duration take_lost() { return Clock::duration(lost_.exchange(0, std::memory_order_relaxed)); }

private:
    int count_;
    alignas(64) std::atomic<int> missing_;
    std::atomic<int> taken_{0};  // the last to come sets both
    alignas(64) std::atomic<unsigned> turn_{0};
    std::atomic<Clock::rep> lost_{0};
};

class Team {
public:
    // Throws std::system_error where the system gives no more threads.
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }
    Barrier& barrier() { return barrier_; }
    // Runs job(0, members) here and job(1, members) … on workers; returns when all have. `members` is size(), or less
    // where others take the cores. The job must not throw.
    void run(const std::function<void(int index, int members)>& job);
    // Until the next run the workers sleep.
    void rest() { awake_.store(false, std::memory_order_relaxed); }

private:
    struct Worker {
        alignas(64) std::atomic<unsigned> call{0};
        std::thread thread;
    };
    void start();
    void stop(int started);
    void work(int index);
    void adapt(Clock::duration took);

    const int size_;
    int members_;
    Barrier barrier_, end_;
    const std::function<void(int, int)>* job_ = nullptr;
    std::atomic<bool> stop_{false}, awake_{true};
    Clock::time_point again_{};   // when one member more is tried
    Clock::duration pause_;       // until then, the next time one is left out
    std::unique_ptr<Worker[]> workers_;
    int process_ = 0;  // in which all of them were started
};

// The part [begin, end) of `count` things that member `index` of `members` does.
struct Share {
    int begin, end;
    Share(int count, int index, int members)
        : begin(static_cast<int>(static_cast<long long>(count) * index / members)),
          end(static_cast<int>(static_cast<long long>(count) * (index + 1) / members)) {}
};

}  // namespace chinchilla
