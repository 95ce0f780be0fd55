// An axis: its range, and ticks at round numbers. Drawings are in boxes of kBox x kBox.
#pragma once

#include <string>
#include <vector>

namespace sala {

constexpr double kBox = 1000;

struct Tick {
  double place;  // 0 to 1 along the axis
  std::string label;
};

struct Axis {
  double low = 0, high = 1;  // low < high
  bool log = false;          // low > 0
  std::vector<Tick> ticks;   // in order, labels all different

  double place(double value) const;  // 0 to 1; outside the range: the nearer end
};

// From `low` to `high`, widened a little where they are equal. With `round` the ends move out to
// round numbers. `log` holds where low > 0. At most about `most_ticks`, at least two.
Axis make_axis(double low, double high, int most_ticks, bool log, bool round);

}  // namespace sala
