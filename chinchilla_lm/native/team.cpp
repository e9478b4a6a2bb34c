#include "team.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace chinchilla {

namespace {

// Looks before a waiting thread yields its core, about 100 µs; and how long a worker waits for the next pass before it
// parks: longer than what stands between two tokens (sampling, text), short beside what a person notices.
constexpr int kLooks = 4096;
constexpr auto kPatience = std::chrono::milliseconds(2);

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void Barrier::wait() {
    if (count_ == 1) return;
    const unsigned turn = turn_.load(std::memory_order_relaxed);
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        missing_.store(count_, std::memory_order_relaxed);
        turn_.store(turn + 1, std::memory_order_release);
        return;
    }
    for (int looks = 0; turn_.load(std::memory_order_acquire) == turn; ++looks) {
        if (looks < kLooks) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

Team::Team(int threads) : barrier_(threads), end_(threads) {
    for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { work(index); });
}

Team::~Team() {
    stop_ = true;
    ++call_;
    call_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Team::run(const std::function<void(int)>& job) {
    if (!workers_.empty()) {
        job_ = &job;
        awake_.store(true, std::memory_order_relaxed);
        call_.fetch_add(1, std::memory_order_release);
        call_.notify_all();
    }
    job(0);
    end_.wait();
}

void Team::work(int index) {
    for (unsigned seen = 0;;) {
        const auto parked = std::chrono::steady_clock::now() + kPatience;
        for (int looks = 0; call_.load(std::memory_order_acquire) == seen; ++looks) {
            if (looks % 64 == 63 && (!awake_.load(std::memory_order_relaxed) || std::chrono::steady_clock::now() > parked)) {
                call_.wait(seen, std::memory_order_acquire);
            } else {
                pause();
            }
        }
        ++seen;
        if (stop_) return;
        (*job_)(index);
        end_.wait();
    }
}

}  // namespace chinchilla
