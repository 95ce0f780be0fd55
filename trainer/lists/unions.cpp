// Counting blocks, tile by tile.
#include "trainer/lists/unions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace sala {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

double over(double sum, double count) { return count > 0 ? sum / count : kNone; }

std::string cell(double value, double factor, const char* unit) {
  return std::isnan(value) ? "-" : fmt::format("{:.{}f}{}", value * factor, *unit ? 1 : 2, unit);
}

double forced_share(const at::Tensor& blocks, int64_t first_token, const SparseConfig& config) {
  const auto lists = blocks.accessor<int, 3>();
  int64_t listed = 0, forced = 0;
  for (int64_t head = 0; head < lists.size(0); ++head) {
    const int64_t begin = std::max<int64_t>(first_choice(config) - first_token, 0);
    for (int64_t t = begin; t < lists.size(1); ++t) {
      const int64_t window = (first_token + t) / config.block_size - config.local_blocks();
      for (int64_t i = 0; i < lists.size(2); ++i) {
        const int64_t block = lists[head][t][i];
        listed += block >= 0;
        forced += block >= 0 && (block < config.init_blocks || block >= window);
      }
    }
  }
  return over(double(forced), double(listed));
}

}  // namespace

int64_t first_choice(const SparseConfig& config) {
  return config.blocks_per_token() * config.block_size;
}

double union_factor(const at::Tensor& blocks, int64_t first_token, int64_t n,
                    const SparseConfig& config) {
  const auto lists = blocks.accessor<int, 3>();
  const int64_t last_token = first_token + lists.size(1);
  const int64_t from = std::max(first_token, first_choice(config));
  std::vector<int64_t> seen_by(static_cast<size_t>(last_token / config.block_size + 1), -1);
  double sum = 0;
  int64_t tile = 0;
  for (int64_t head = 0; head < lists.size(0); ++head) {
    for (int64_t t = (from + n - 1) / n * n; t + n <= last_token; t += n, ++tile) {
      int64_t listed = 0, chosen = 0;
      for (int64_t i = 0; i < n * lists.size(2); ++i) {
        const int64_t block = lists[head][t - first_token + i / lists.size(2)][i % lists.size(2)];
        if (block < 0) continue;
        ++listed;
        int64_t& last = seen_by.at(static_cast<size_t>(block));
        chosen += last != tile;
        last = tile;
      }
      sum += double(chosen) * double(n) / double(listed);
    }
  }
  return over(sum, double(tile));
}

ListFacts list_facts(const at::Tensor& blocks, int64_t first_token, const SparseConfig& config) {
  ListFacts facts{};
  for (size_t i = 0; i < kUnionTokens.size(); ++i) {
    facts.unions[i] = union_factor(blocks, first_token, kUnionTokens[i], config);
  }
  facts.forced = forced_share(blocks, first_token, config);
  return facts;
}

std::string list_facts_head() {
  std::string line = fmt::format("{:<21}", "lists");
  for (const int64_t n : kUnionTokens) line += fmt::format("{:>8}", fmt::format("u({})", n));
  return line + fmt::format("{:>10}", "forced");
}

std::string list_facts_line(const std::string& name, const ListFacts& facts) {
  std::string line = fmt::format("{:<21}", name);
  for (const double u : facts.unions) line += fmt::format("{:>8}", cell(u, 1, ""));
  return line + fmt::format("{:>10}", cell(facts.forced, 100, " %"));
}

}  // namespace sala
