// Wilson's interval of a rate (interval.h).
#include "trainer/charts/interval.h"

#include <algorithm>
#include <cmath>

namespace sala {

Interval wilson(double hits, double count) {
  constexpr double kZ = 1.96, kZ2 = kZ * kZ;
  if (!(count > 0)) return {};
  const double p = hits / count, shrunk = 1 + kZ2 / count;
  const double center = (p + kZ2 / (2 * count)) / shrunk;
  const double half = kZ / shrunk * std::sqrt(p * (1 - p) / count + kZ2 / (4 * count * count));
  return {std::max(0.0, center - half), std::min(1.0, center + half)};
}

}  // namespace sala
