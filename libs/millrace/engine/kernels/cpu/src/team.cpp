#include "team.h"

#include "lanes.h"

namespace millrace {

namespace {

// About 20 microseconds: longer than the end of a phase takes when every member has its core.
constexpr int kSpins = 400;
// A new job mostly follows soon; between two steps of a busy worker nobody should have to be woken.
constexpr int kIdleSpins = 2000;

template <class Done>
void wait_until(Done&& done) {
  for (int spin = 0; !done(); ++spin) {
    if (spin < kSpins)
      pause();
    else
      // Whoever we wait for may need this very core.
      std::this_thread::yield();
  }
}

}  // namespace

Team::Team(int size) : size_(size) {
  try {
    for (int index = 1; index < size; ++index) threads_.emplace_back(&Team::serve, this, index);
  } catch (...) {
    // Threads that nobody joined would end the process.
    end();
    throw;
  }
}

Team::~Team() { end(); }

void Team::end() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    started_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(const std::function<void(Member&)>& job) {
  if (size_ > 1) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      started_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  } else {
    job_ = &job;
  }
  work(0);
}

void Team::serve(int index) {
  for (long seen = 0;; ++seen) {
    for (int spin = 0; spin < kIdleSpins; ++spin) {
      if (started_.load(std::memory_order_acquire) != seen) break;
      pause();
    }
    if (started_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return started_.load(std::memory_order_relaxed) != seen; });
    }
    if (ending_) return;
    work(index);
  }
}

void Team::work(int index) {
  Member member(*this, index);
  (*job_)(member);
  // Nobody leaves before all are done: the next job would find counters in use.
  member.barrier();
}

void Team::arrive(long phase) {
  const long generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    next_[phase & 1].store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  wait_until([&] { return generation_.load(std::memory_order_acquire) != generation; });
}

}  // namespace millrace
