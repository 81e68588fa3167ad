// A small team of threads that runs one job together and is parked between jobs.
//
// Inside a job every member runs the same code. `each` hands out items one by one, so that a member
// whose core was taken away holds nobody up for longer than one item, and ends in a barrier.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace millrace {

class Team;

class Member {
 public:
  const int index;

  Member(Team& team, int index) : index(index), team_(team) {}

  // Calls use(item) for this member's share of the items 0..count-1; returns when all are done.
  template <class Use>
  void each(long count, Use&& use);

  // The same with use(item, next), where `next` is what this member does after it, or `count`.
  template <class Use>
  void each_ahead(long count, Use&& use);

  // Waits until every member is here.
  void barrier();

 private:
  Team& team_;
  long phase_ = 0;
};

class Team {
 public:
  // `size` members, the calling thread of `run` among them. Throws where the system has no more.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs job(member) on every member; returns when all have returned. One caller at a time.
  void run(const std::function<void(Member&)>& job);

 private:
  friend class Member;

  void end();
  void serve(int index);
  void work(int index);
  long take(long phase) { return next_[phase & 1].fetch_add(1, std::memory_order_relaxed); }
  void arrive(long phase);

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(Member&)>* job_ = nullptr;
  bool ending_ = false;
  std::atomic<long> started_{0};
  // Each on a cache line of its own: they are written by all members all the time.
  alignas(64) std::atomic<long> next_[2] = {{0}, {0}};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<long> generation_{0};
};

template <class Use>
void Member::each(long count, Use&& use) {
  for (long item = team_.take(phase_); item < count; item = team_.take(phase_)) use(item);
  barrier();
}

template <class Use>
void Member::each_ahead(long count, Use&& use) {
  for (long item = team_.take(phase_), next; item < count; item = next) {
    next = team_.take(phase_);
    use(item, std::min(next, count));
  }
  barrier();
}

inline void Member::barrier() { team_.arrive(phase_++); }

}  // namespace millrace
