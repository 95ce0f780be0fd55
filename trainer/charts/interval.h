// The 95 % interval of a rate.
#pragma once

#include "trainer/charts/numbers.h"

namespace sala {

struct Interval {
  Maybe low, high;
};

// By Wilson's score (1927), at 1.96 standard deviations: `hits`, a sum of values in [0, 1], of
// `count`. Nothing without trials.
Interval wilson(double hits, double count);

}  // namespace sala
