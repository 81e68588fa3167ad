// Calls one function of the kernels on memory read from standard input, and writes it back.
//
// With it the tests that call the kernels in their own process also reach builds for another CPU,
// which run under an emulator. Numbers are int64. Input: function, size of the team, the buffers
// (count; size and bytes of each), the pointers inside them (count; buffer, offset, target buffer,
// offset in it), the arguments (count; 0: a number, 1: a buffer, 2: the team; value). Output: the
// result, then the bytes of every buffer.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "millrace_cpu.h"

namespace {

void read_bytes(void* to, size_t count) {
  if (std::fread(to, 1, count, stdin) == count) return;
  std::fputs("the image ends early\n", stderr);
  std::exit(2);
}

int64_t read_number() {
  int64_t number;
  read_bytes(&number, sizeof number);
  return number;
}

template <class T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

int64_t run_model(const std::vector<int64_t>& a) {
  void* model = nullptr;
  const int64_t refused = mr_model_create(at<mr_model>(a[0]), &model);
  if (refused != MR_OK) return refused;
  const int64_t result = mr_model_run(model, at<void>(a[1]), at<mr_kv>(a[2]), a[3],
                                      at<mr_batch>(a[4]), at<mr_output>(a[5]));
  mr_model_destroy(model);
  return result;
}

int64_t call(const std::string& function, const std::vector<int64_t>& a) {
  if (function == "mr_tile_bytes") return mr_tile_bytes(a[0], a[1], a[2]);
  if (function == "mr_panel_bytes") return mr_panel_bytes(a[0], a[1], a[2]);
  if (function == "mr_pack")
    return mr_pack(a[0], at<float>(a[1]), a[2], a[3], a[4], at<void>(a[5]), a[6]);
  if (function == "mr_multiply")
    return mr_multiply(at<void>(a[0]), at<mr_matrix>(a[1]), at<float>(a[2]), a[3], a[4],
                       at<float>(a[5]), a[6]);
  if (function == "mr_attend")
    return mr_attend(at<void>(a[0]), at<mr_kv>(a[1]), at<mr_attention>(a[2]), at<mr_batch>(a[3]),
                     at<mr_heads>(a[4]));
  if (function == "mr_model_run") return run_model(a);
  if (function == "mr_draw_tokens")
    return mr_draw_tokens(at<void>(a[0]), at<float>(a[1]), a[2], a[3], a[4], at<mr_draw>(a[5]),
                          a[6], at<int64_t>(a[7]));
  std::fprintf(stderr, "no function %s\n", function.c_str());
  std::exit(2);
}

}  // namespace

int main() {
  std::string function(read_number(), '\0');
  read_bytes(function.data(), function.size());
  void* team = nullptr;
  if (mr_team_create(read_number(), &team) != MR_OK) {
    std::fprintf(stderr, "no team: %s\n", mr_reason());
    return 2;
  }
  std::vector<std::vector<char>> buffers(read_number());
  for (std::vector<char>& buffer : buffers) {
    buffer.resize(read_number());
    read_bytes(buffer.data(), buffer.size());
  }
  for (int64_t left = read_number(); left > 0; --left) {
    char* place = buffers[read_number()].data();
    place += read_number();
    const char* target = buffers[read_number()].data();
    target += read_number();
    std::memcpy(place, &target, sizeof target);
  }
  std::vector<int64_t> arguments(read_number());
  for (int64_t& argument : arguments) {
    const int64_t what = read_number();
    argument = read_number();
    if (what == 1) argument = reinterpret_cast<int64_t>(buffers[argument].data());
    if (what == 2) argument = reinterpret_cast<int64_t>(team);
  }
  const int64_t result = call(function, arguments);
  std::fwrite(&result, sizeof result, 1, stdout);
  for (const std::vector<char>& buffer : buffers)
    std::fwrite(buffer.data(), 1, buffer.size(), stdout);
  mr_team_destroy(team);
  return 0;
}
