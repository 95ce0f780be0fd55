// Sums along a row of floats for the CPU loops: independent lanes, so that the compiler may keep
// them in one vector register without reordering a sum, then added in double.
#pragma once

#include <cstdint>

namespace sala {

constexpr int64_t kLanes = 16;

template <typename Term>
double lane_sum(int64_t n, const Term& term) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
  }
  double sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  for (; i < n; ++i) sum += term(i);
  return sum;
}

inline double dot(const float* a, const float* b, int64_t n) {
  return lane_sum(n, [=](int64_t i) { return a[i] * b[i]; });
}

inline double dot(const float* a, const float* b, const float* c, int64_t n) {
  return lane_sum(n, [=](int64_t i) { return a[i] * b[i] * c[i]; });
}

}  // namespace sala
