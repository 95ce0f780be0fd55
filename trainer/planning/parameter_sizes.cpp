// Sizes from layouts alone.
#include "trainer/planning/parameter_sizes.h"

#include <algorithm>

#include "trainer/sharding/pool.h"

namespace sala {

at::ScalarType master_dtype(at::ScalarType compute) {
  return compute == at::kDouble ? at::kDouble : at::kFloat;
}

Parameters::Options effective_options(Parameters::Options options, int num_ranks) {
  if (num_ranks == 1) options.sharding = Sharding::kNone;
  return options;
}

Cut cut_of(const Layout& layout, Sharding sharding, int num_ranks) {
  return {layout.num_elements, sharding == Sharding::kNone ? 1 : num_ranks};
}

std::vector<int64_t> padded_sizes(const std::vector<Cut>& cuts, const std::vector<bool>& needed) {
  std::vector<int64_t> sizes;
  for (size_t part = 0; part < cuts.size(); ++part) {
    sizes.push_back(needed[part] ? cuts[part].padded() : 0);
  }
  return sizes;
}

int64_t largest_share(const std::vector<Cut>& cuts, const std::vector<bool>& needed) {
  int64_t most = 0;
  for (size_t part = 0; part < cuts.size(); ++part) {
    if (needed[part]) most = std::max(most, cuts[part].share);
  }
  return most;
}

Parameters::Bytes Parameters::planned_bytes(const std::vector<LayoutPtr>& layouts,
                                            const Options& wanted, int num_ranks,
                                            const std::vector<bool>& trained_parts) {
  const Options options = effective_options(wanted, num_ranks);
  const auto compute = static_cast<int64_t>(at::elementSize(options.dtype));
  const auto wide = static_cast<int64_t>(at::elementSize(master_dtype(options.dtype)));
  const bool sharded = options.sharding == Sharding::kZero3;
  const bool master_is_copy = options.trains && compute == wide;
  std::vector<bool> trained = trained_parts;
  trained.resize(layouts.size(), false);
  std::vector<Cut> cuts;
  Bytes bytes;
  for (size_t part = 0; part < layouts.size(); ++part) {
    const Cut cut = cut_of(*layouts[part], options.sharding, num_ranks);
    const int64_t held = sharded ? cut.share : cut.padded();
    if (options.trains) bytes.masters += cut.share * wide;
    bytes.copies += (master_is_copy ? held - cut.share : held) * compute;
    if (trained[part]) bytes.gradients += held * wide;
    cuts.push_back(cut);
  }
  if (!sharded) return bytes;
  const std::vector<bool> all(layouts.size(), true);
  bytes.buffers +=
      plan_pool(padded_sizes(cuts, all), options.units, /*held=*/false).num_elements() * compute;
  bytes.buffers +=
      plan_pool(padded_sizes(cuts, trained), options.units, /*held=*/true).num_elements() * wide;
  bytes.buffers += largest_share(cuts, trained) * wide;
  return bytes;
}

}  // namespace sala
