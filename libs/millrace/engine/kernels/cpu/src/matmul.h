// Rows of input times a packed matrix, shared out over a team by panels and runs of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
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

// Input rows of a matrix product, `stride` numbers apart, zero beyond K. Where Int8 and Int4 take
// integers, each row has a scale and the sum of each group.
template <class Kind>
struct Rows {
  typename Kind::Input* data;
  long stride;
  float* scales;
  int32_t* sums;
  long sums_stride;
};

template <class Kind>
class RowBuffer {
 public:
  Rows<Kind> reserve(long rows, long k) {
    const long depth = round_up(k, kAlignK);
    if constexpr (kTakesIntegers<Kind>) {
      const long stride = depth * 2 / static_cast<long>(sizeof(typename Kind::Input));
      const long groups = depth / Kind::kGroup;
      return {data_.reserve(rows * stride), stride, scales_.reserve(rows),
              sums_.reserve(rows * groups), groups};
    } else {
      return {data_.reserve(rows * depth), depth, nullptr, nullptr, 0};
    }
  }

 private:
  Buffer<typename Kind::Input> data_;
  Buffer<float> scales_;
  Buffer<int32_t> sums_;
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

// What numbers up to `most` are multiplied with to become whole ones up to `limit`.
inline float inverse_step(float most, float limit) {
  // That of less might not be finite.
  return most > 1e-30f ? limit / most : 0.0f;
}

// A sum of `put_integers`. What is not finite has no integer, and its row has no scale; what is too
// large comes of scales that no K/V cache has.
inline int32_t to_integer(float sum) {
  return std::fabs(sum) < 2147483648.0f ? static_cast<int32_t>(sum) : 0;
}

// The scale of a row of integers up to `limit`, whose sum is `sum`: not a number where one of the row
// was none, for the integers do not tell.
inline float scale_of(float most, float limit, float sum) { return most / limit + (sum - sum); }

// `from` [count] times `inverse` as integers of 16 bits, high and low bytes apart where inputs are
// bytes. Returns their sum, which must stay below 2^24; not a number where one of `from` is not finite.
template <class Input>
inline float put_integers(const float* from, long count, float inverse, Input* high, Input* low) {
  const Vec factor = set1(inverse);
  Vec total = zero();
  for (long i = 0; i < count; i += kLanes) {
    const Vec whole = round(mul(load(from + i), factor));
    total = add(total, whole);
    if constexpr (sizeof(Input) == 1)
      store_bytes(high + i, low + i, whole);
    else
      store(high + i, whole);
  }
  return sum(total);
}

// A row of integers in the order that the products of weights take them, group by group.
template <class Kind>
inline void put_groups(const Rows<Kind>& rows, long row, const float* from, long count) {
  const float most = highest_magnitude(from, count);
  const float inverse = inverse_step(most, Kind::kInputLimit);
  const long stride = sizeof(*rows.data) == 1 ? 2 * Kind::kGroup : Kind::kGroup;
  float all = 0.0f;
  for (long group = 0; group < count / Kind::kGroup; ++group) {
    typename Kind::Input* to = rows.data + row * rows.stride + group * stride;
    const float sum = put_integers(from + group * Kind::kGroup, Kind::kGroup, inverse, to,
                                   to + Kind::kGroup);
    rows.sums[row * rows.sums_stride + group] = to_integer(sum);
    all += sum;
  }
  rows.scales[row] = scale_of(most, Kind::kInputLimit, all);
}

// Makes `from` [count], a multiple of 32, row `row` of `rows`.
template <class Kind>
inline void put_row(const Rows<Kind>& rows, long row, const float* from, long count) {
  if constexpr (kTakesIntegers<Kind>)
    put_groups(rows, row, from, count);
  else
    put(rows.data + row * rows.stride, from, count);
}

template <class Kind>
struct Matrix {
  const typename Kind::Weight* panels;
  const float* bias;
  long columns;
  long k;  // padded

  explicit Matrix(const mr_matrix& m)
      : panels(static_cast<const typename Kind::Weight*>(m.panels)),
        bias(m.bias.data),
        columns(m.columns),
        k(round_up(m.k, kAlignK)) {}

  long num_panels() const { return (columns + kColumns - 1) / kColumns; }
  const typename Kind::Weight* panel(long index) const {
    return panels + index * panel_numbers<Kind>(k);
  }
  // Where a member is likely to begin.
  const void* start(int member) const { return panel(std::min<long>(member, num_panels() - 1)); }
};

// Rows that one item takes through a panel: what stays in the core's own cache beside it.
constexpr long kRunRows = 96;

// Calls dot for up to Kind::kMaxRows rows beginning at `first`; `weights` as prepare_panel left them.
template <class Kind, class Weights>
inline void dot_rows(const Rows<Kind>& rows, long first, int count, const Weights* weights, long k,
                     float* out, long ahead) {
  const auto* a = rows.data + first * rows.stride;
  if constexpr (kTakesIntegers<Kind>) {
    const GroupSums sums{rows.sums + first * rows.sums_stride, rows.sums_stride};
    dot_groups<Kind>(a, rows.stride, sums, count, weights, k, out, kColumns, ahead);
  } else if constexpr (kIsGrouped<Kind>) {
    const Part<bf16> whole{weights, ahead};
    dot<Bf16>(a, rows.stride, count, &whole, 1, k, out, kColumns);
  } else {
    const Part<typename Kind::Weight> whole{weights, ahead};
    dot<Kind>(a, rows.stride, count, &whole, 1, k, out, kColumns);
  }
}

// The panel as dot_rows takes it: in place, or made wide in this thread's own memory.
template <class Kind>
inline auto prepare_panel(const Matrix<Kind>& matrix, long panel) {
#if defined(MILLRACE_AMX)
  if constexpr (kIsGrouped<Kind>) {
    static thread_local Buffer<bf16> room;
    bf16* wide = room.reserve(matrix.k * kColumns);
    widen_panel<Kind>(matrix.panel(panel), matrix.k, wide);
    return static_cast<const bf16*>(wide);
  } else
#endif
    return matrix.panel(panel);
}

// Multiplies rows [first, end) by one panel; use(row, float out[32]) gets each row's result. `next`
// is what this member reads after it.
template <class Kind, class Use>
inline void multiply_panel(const Matrix<Kind>& matrix, long panel, const Rows<Kind>& rows,
                           long first, long end, const void* next, Use&& use) {
  alignas(64) float sums[Kind::kMaxRows * kColumns];
  const long count = end - first;
  const long tiles = (count + Kind::kMaxRows - 1) / Kind::kMaxRows;
  const auto* weights = prepare_panel(matrix, panel);
  const float* bias = matrix.bias == nullptr ? nullptr : matrix.bias + panel * kColumns;
  for (long tile = 0; tile < tiles; ++tile) {
    const long start = first + count * tile / tiles;
    const int height = static_cast<int>(first + count * (tile + 1) / tiles - start);
    const long ahead = tile == 0 ? distance(weights, next) : 0;
    dot_rows(rows, start, height, weights, matrix.k, sums, ahead);
    for (int row = 0; row < height; ++row) {
      float* values = sums + row * kColumns;
      for (int n = 0; n < kColumns; n += kLanes) {
        Vec value = load(values + n);
        if constexpr (kTakesIntegers<Kind>) value = mul(value, set1(rows.scales[start + row]));
        if (bias != nullptr) value = add(value, load(bias + n));
        store(values + n, value);
      }
      use(start + row, values);
    }
  }
}

// Some rows of a product and one panel; `next` is the panel that this member takes after it, or -1.
struct PanelRun {
  long panel;
  long first;
  long end;
  long next;
};

// Calls use(PanelRun) for every panel and run of rows, over the team.
template <class Use>
inline void each_panel(Member& member, long num_panels, long num_rows, Use&& use) {
  const long runs = (num_rows + kRunRows - 1) / kRunRows, count = runs * num_panels;
  member.each_ahead(count, [&](long item, long next) {
    const long run = item / num_panels;
    use(PanelRun{item % num_panels, num_rows * run / runs, num_rows * (run + 1) / runs,
                 next < count ? next % num_panels : -1});
  });
}

// Multiplies `rows` [count] by a matrix; use(panel, row, float out[32]) gets the results. `after` is
// what is read when all panels are done.
template <class Kind, class Use>
inline void multiply_rows(Member& member, const Matrix<Kind>& matrix, const Rows<Kind>& rows,
                          long count, const void* after, Use&& use) {
  each_panel(member, matrix.num_panels(), count, [&](const PanelRun& run) {
    const void* next = run.next < 0 ? after : matrix.panel(run.next);
    multiply_panel(matrix, run.panel, rows, run.first, run.end, next,
                   [&](long row, const float* values) { use(run.panel, row, values); });
  });
}

// Calls use(first, end) for short runs of rows.
template <class Use>
inline void each_rows(Member& member, long count, Use&& use, long grain = 4) {
  member.each((count + grain - 1) / grain,
              [&](long run) { use(run * grain, std::min(count, (run + 1) * grain)); });
}

}  // namespace millrace
