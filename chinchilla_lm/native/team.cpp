#include "team.h"

#include <unistd.h>

#include <algorithm>
#include <exception>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace chinchilla {

namespace {

// Looks before a waiting thread yields its core, about 100 µs; and how long a worker waits for the next pass before it
// parks: longer than what stands between two tokens (sampling, text), short beside what a person notices.
constexpr int kLooks = 4096;
constexpr auto kPatience = std::chrono::milliseconds(2);

// How long a team goes on with a member less: twice as long each time that trying again fails. In a pass much longer than
// the system's time slices these take turns anyway, so there most of it must be lost: where cores are fought for, a token
// takes as long as its barriers times a slice.
constexpr auto kLeastPause = std::chrono::milliseconds(8);
constexpr auto kMostPause = std::chrono::milliseconds(512);
constexpr auto kShortPass = std::chrono::milliseconds(40);
constexpr int kLongPause = 8;  // after a long pass, in times as long as it took: trying again is dear there

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
        taken_.store(0, std::memory_order_relaxed);
        turn_.store(turn + 1, std::memory_order_release);
        return;
    }
    for (int looks = 0; looks < kLooks; ++looks) {
        if (turn_.load(std::memory_order_acquire) != turn) return;
        pause();
    }
    const Clock::time_point late = Clock::now();
    while (turn_.load(std::memory_order_acquire) == turn) std::this_thread::yield();
    lost_.fetch_add((Clock::now() - late).count(), std::memory_order_relaxed);
}

void Barrier::open(int count) {
    count_ = count;
    missing_.store(count, std::memory_order_relaxed);
    taken_.store(0, std::memory_order_relaxed);
}

Team::Team(int threads) : size_(threads), members_(threads), barrier_(threads), end_(threads), pause_(kLeastPause) { start(); }

Team::~Team() {
    if (process_ == getpid()) {
        stop(size_ - 1);
    } else {
        workers_.release();  // handles of threads that are not in this process
    }
}

void Team::start() {
    stop_ = false;
    workers_.reset(new Worker[size_ - 1]);
    for (int index = 1; index < size_; ++index) {
        try {
            workers_[index - 1].thread = std::thread([this, index] { work(index); });
        } catch (...) {
            stop(index - 1);
            throw;
        }
    }
    process_ = getpid();
}

void Team::stop(int started) {
    stop_ = true;
    for (int i = 0; i < started; ++i) {
        ++workers_[i].call;
        workers_[i].call.notify_all();
    }
    for (int i = 0; i < started; ++i) workers_[i].thread.join();
}

void Team::run(const std::function<void(int, int)>& job) {
    if (size_ == 1) return job(0, 1);
    if (process_ != getpid()) {
        workers_.release();
        process_ = 0;
        barrier_.open(members_);  // somebody may have been waiting there
        end_.open(members_);
        start();
    }
    const Clock::time_point begin = Clock::now();
    if (members_ < size_ && begin >= again_) {
        ++members_;
        barrier_.open(members_);
        end_.open(members_);
    }
    job_ = &job;
    awake_.store(true, std::memory_order_relaxed);
    for (int i = 0; i < members_ - 1; ++i) {
        workers_[i].call.fetch_add(1, std::memory_order_release);
        workers_[i].call.notify_all();
    }
    job(0, members_);
    end_.wait();
    adapt(Clock::now() - begin);
}

// Where each of n members lost a part l of a pass, n - 1 that are not held up do its work n / (n - 1) times as slowly, so
// they are faster if l > 1 / n.
void Team::adapt(Clock::duration took) {
    const Clock::duration lost = barrier_.take_lost();
    if (members_ == 1) return;
    const bool is_long = took > kShortPass;
    if (is_long ? lost * 4 <= took * 3 * (members_ - 1) : lost * members_ <= took * (members_ - 1)) {
        if (!is_long) pause_ = std::max<Clock::duration>(pause_ / 2, kLeastPause);
        return;
    }
    --members_;
    barrier_.open(members_);
    end_.open(members_);
    again_ = Clock::now() + (is_long ? std::max<Clock::duration>(pause_, took * kLongPause) : pause_);
    pause_ = std::min<Clock::duration>(pause_ * 2, kMostPause);
}

void Team::work(int index) {
    // A thread's memory for exceptions is made when it is first asked for: not when there is none left.
    if (std::uncaught_exceptions()) return;
    std::atomic<unsigned>& call = workers_[index - 1].call;
    for (unsigned seen = 0;;) {
        const auto parked = Clock::now() + kPatience;
        for (int looks = 0; call.load(std::memory_order_acquire) == seen; ++looks) {
            if (looks % 64 == 63 && (!awake_.load(std::memory_order_relaxed) || Clock::now() > parked)) {
                call.wait(seen, std::memory_order_acquire);
            } else {
                pause();
            }
        }
        ++seen;
        if (stop_) return;
        (*job_)(index, members_);
        end_.wait();
    }
}

}  // namespace chinchilla
