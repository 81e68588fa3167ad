// Rows of input times a packed matrix, shared out over a team by panels and runs of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dot.h"
#include "millrace_cpu.h"
#include "team.h"

namespace millrace {

// Zero-initialised memory, aligned to cache lines, that grows and is used again.
template <class T>
class Buffer {
 public:
  T* reserve(long count) {
    if (count > static_cast<long>(data_.size() - kSlack)) data_.assign(count + kSlack, T{});
    return data();
  }
  T* data() {
    const auto address = reinterpret_cast<uintptr_t>(data_.data());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }

 private:
  static constexpr long kSlack = 64;
  std::vector<T> data_ = std::vector<T>(kSlack);
};

// Input rows of a matrix product, `stride` numbers apart, zero beyond K; Int8 has a scale per row.
template <class Kind>
struct Rows {
  typename Kind::Input* data;
  float* scales;
  long stride;
};

template <class Kind>
class RowBuffer {
 public:
  Rows<Kind> reserve(long rows, long k) {
    const long stride = round_up(k, kAlignK);
    return {data_.reserve(rows * stride), scales_.reserve(rows), stride};
  }

 private:
  Buffer<typename Kind::Input> data_;
  Buffer<float> scales_;
};

inline void put(bf16* to, const float* from, long count) {
  for (long i = 0; i < count; i += kLanes) store(to + i, load(from + i));
}
inline void put(float* to, const float* from, long count) {
  std::memcpy(to, from, count * sizeof(float));
}

inline float highest_magnitude(const float* x, long count) {
  Vec most = zero();
  for (long i = 0; i < count; i += kLanes) most = max(most, abs(load(x + i)));
  return highest(most);
}

// Makes `from` [count], a multiple of 16, row `row` of `rows`.
template <class Kind>
inline void put_row(const Rows<Kind>& rows, long row, const float* from, long count) {
  typename Kind::Input* to = rows.data + row * rows.stride;
  if constexpr (std::is_same_v<Kind, Int8>) {
    const float most = highest_magnitude(from, count);
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    rows.scales[row] = most / 127.0f;
    for (long i = 0; i < count; i += kLanes) {
      int8_t rounded[kLanes];
      store(rounded, mul(load(from + i), set1(inverse)));
      for (int lane = 0; lane < kLanes; ++lane)
        to[i + lane] = static_cast<typename Kind::Input>(rounded[lane] + Kind::kInputOffset);
    }
  } else {
    put(to, from, count);
  }
}

template <class Kind>
struct Matrix {
  const typename Kind::Weight* panels;
  const float* scales;
  const int32_t* offsets;
  const float* bias;
  long columns;
  long k;  // padded

  explicit Matrix(const mr_matrix& m)
      : panels(static_cast<const typename Kind::Weight*>(m.panels)),
        scales(m.scales),
        offsets(m.offsets),
        bias(m.bias),
        columns(m.columns),
        k(round_up(m.k, kAlignK)) {}

  long num_panels() const { return (columns + kColumns - 1) / kColumns; }
  const typename Kind::Weight* panel(long index) const { return panels + index * k * kColumns; }
};

// Rows that one item takes through a panel: what stays in the core's own cache beside it.
constexpr long kRunRows = 96;

// Turns the sums of one row and panel into numbers, in place where the types allow it.
template <class Kind>
inline void finish_row(const Matrix<Kind>& matrix, long panel, const typename Kind::Sum* sums,
                       float input_scale, float* out) {
  const long column = panel * kColumns;
  for (int n = 0; n < kColumns; n += kLanes) {
    Vec value;
    if constexpr (std::is_same_v<Kind, Int8>) {
      int32_t exact[kLanes];
      for (int lane = 0; lane < kLanes; ++lane)
        exact[lane] = sums[n + lane] - matrix.offsets[column + n + lane];
      value = mul(load(exact), mul(set1(input_scale), load(matrix.scales + column + n)));
    } else {
      value = load(sums + n);
    }
    if (matrix.bias != nullptr) value = add(value, load(matrix.bias + column + n));
    store(out + n, value);
  }
}

// Multiplies rows [first, end) by one panel; use(row, float out[32]) gets each row's result.
template <class Kind, class Use>
inline void multiply_panel(const Matrix<Kind>& matrix, long panel, const Rows<Kind>& rows,
                           long first, long end, Use&& use) {
  alignas(64) typename Kind::Sum sums[Kind::kMaxRows * kColumns];
  alignas(64) float values[kColumns];
  const long count = end - first;
  const long tiles = (count + Kind::kMaxRows - 1) / Kind::kMaxRows;
  const typename Kind::Weight* weights = matrix.panel(panel);
  for (long tile = 0; tile < tiles; ++tile) {
    const long start = first + count * tile / tiles;
    const int height = static_cast<int>(first + count * (tile + 1) / tiles - start);
    dot<Kind>(rows.data + start * rows.stride, rows.stride, height, weights, matrix.k, sums,
              kColumns, false);
    for (int row = 0; row < height; ++row) {
      float scale = 1.0f;
      if constexpr (std::is_same_v<Kind, Int8>) scale = rows.scales[start + row];
      finish_row(matrix, panel, sums + row * kColumns, scale, values);
      use(start + row, values);
    }
  }
}

// Calls use(item's panel, first row, end row) for every panel and run of rows, over the team.
template <class Use>
inline void each_panel(Member& member, long num_panels, long num_rows, Use&& use) {
  const long runs = (num_rows + kRunRows - 1) / kRunRows;
  member.each(runs * num_panels, [&](long item) {
    const long run = item / num_panels;
    use(item % num_panels, num_rows * run / runs, num_rows * (run + 1) / runs);
  });
}

// Calls use(first, end) for short runs of rows.
template <class Use>
inline void each_rows(Member& member, long count, Use&& use) {
  constexpr long grain = 4;
  member.each((count + grain - 1) / grain,
              [&](long run) { use(run * grain, std::min(count, (run + 1) * grain)); });
}

}  // namespace millrace
