// Jobs whose phases read what other members wrote in the phase before; run under a thread sanitizer.
#include <cstdio>
#include <vector>

#include "team.h"

using millrace::Member;
using millrace::Team;

namespace {

constexpr long kItems = 37;
constexpr int kJobs = 120;

// False where an item was skipped, taken twice or read before it was written.
bool run_jobs(int size) {
  Team team(size);
  std::vector<long> first(kItems), second(kItems);
  long total = 0;
  for (int job = 0; job < kJobs; ++job) {
    const long count = job % kItems + 1;
    team.run([&](Member& member) {
      member.each(count, [&](long item) { first[item] += item + 1; });
      member.each(count, [&](long item) { second[item] = first[count - 1 - item]; });
      if (member.index == 0)
        for (long item = 0; item < count; ++item) total += second[item];
      member.barrier();
      member.each(count, [&](long item) { first[item] = 0; });
    });
    // No thread of the last job may still run here.
    for (long item = 0; item < count; ++item) total += first[item];
    if (total != count * (count + 1) / 2) return false;
    total = 0;
  }
  return true;
}

}  // namespace

int main() {
  for (int size : {1, 2, 3, 5})
    if (!run_jobs(size)) {
      std::printf("wrong with %d members\n", size);
      return 1;
    }
  for (int made = 0; made < 20; ++made) Team unused(3);
  return 0;
}
