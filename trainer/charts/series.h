// A curve of any length in bounded memory: values come one by one, neighbours are put together as
// soon as there are too many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sala {

class Series {
 public:
  static constexpr size_t kMostBins = 600;

  struct Bin {
    double x;          // mean
    double sum;        // of the values
    double low, high;  // of the values
    int64_t count;
    double mean() const { return sum / static_cast<double>(count); }
  };

  // x does not fall. What is not finite is left out.
  void add(double x, double y);

  const std::vector<Bin>& bins() const { return bins_; }  // at most kMostBins
  bool empty() const { return bins_.empty(); }
  int64_t count() const { return count_; }
  double last() const { return last_; }  // value; 0 when empty
  double median() const;                 // of the bins' means; 0 when empty
  // Quantile of the bins' lows (share < 0.5) or highs: a range that single spikes do not stretch.
  double bound(double share) const;

 private:
  void halve();

  std::vector<Bin> bins_;
  int64_t per_bin_ = 1;  // values of a full bin
  int64_t count_ = 0;
  double last_ = 0;
};

}  // namespace sala
