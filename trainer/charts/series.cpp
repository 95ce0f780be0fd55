// Bins of equally many values; when all are full, pairs become one.
#include "trainer/charts/series.h"

#include <algorithm>
#include <cmath>

namespace sala {
namespace {

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

}  // namespace

void Series::add(double x, double y) {
  if (!std::isfinite(x) || !std::isfinite(y)) return;
  ++count_;
  last_ = y;
  if (!bins_.empty() && bins_.back().count < per_bin_) {
    Bin& bin = bins_.back();
    bin.x += (x - bin.x) / static_cast<double>(bin.count + 1);
    bin.sum += y;
    bin.low = std::min(bin.low, y);
    bin.high = std::max(bin.high, y);
    ++bin.count;
    return;
  }
  if (bins_.size() == kMostBins) halve();
  bins_.push_back({x, y, y, y, 1});
}

void Series::halve() {
  for (size_t i = 0; i + 1 < bins_.size(); i += 2) {
    const Bin &a = bins_[i], &b = bins_[i + 1];
    const double share = static_cast<double>(b.count) / static_cast<double>(a.count + b.count);
    bins_[i / 2] = {a.x + (b.x - a.x) * share, a.sum + b.sum, std::min(a.low, b.low),
                    std::max(a.high, b.high), a.count + b.count};
  }
  bins_.resize(bins_.size() / 2);
  per_bin_ *= 2;
}

double Series::median() const {
  std::vector<double> means;
  for (const Bin& bin : bins_) means.push_back(bin.mean());
  return quantile(std::move(means), 0.5);
}

double Series::bound(double share) const {
  std::vector<double> ends;
  for (const Bin& bin : bins_) ends.push_back(share < 0.5 ? bin.low : bin.high);
  return quantile(std::move(ends), share);
}

}  // namespace sala
