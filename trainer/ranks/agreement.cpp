// Hashes first; the facts themselves travel only where they differ.
#include "trainer/ranks/agreement.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "data/files/atomic_file.h"
#include "data/files/hash.h"
#include "trainer/ranks/device_info.h"

namespace sala {
namespace {

constexpr size_t kMostDifferences = 8;  // told; the rest is counted

std::string hash_of(const std::string& text) { return xxh3_128_hex(text.data(), text.size()); }

std::vector<std::string> differences(const Facts& first, const Facts& other, int rank) {
  std::vector<std::string> lines;
  const auto value = [](const Facts& facts, const std::string& name) {
    const auto found = facts.find(name);
    return found == facts.end() ? std::string("(absent)") : found->second;
  };
  Facts names = first;
  names.insert(other.begin(), other.end());
  for (const auto& [name, unused] : names) {
    const std::string a = value(first, name), b = value(other, name);
    if (a != b) lines.push_back(fmt::format("{}: {} on rank 0, {} on rank {}", name, a, b, rank));
  }
  if (lines.size() > kMostDifferences) {
    const size_t more = lines.size() - kMostDifferences;
    lines.resize(kMostDifferences);
    lines.push_back(fmt::format("and {} more", more));
  }
  return lines;
}

}  // namespace

void require_equal_facts(World& world, const Facts& mine) {
  if (world.size() == 1) return;
  const std::string text =
      nlohmann::json(mine).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::vector<std::string> hashes = world.gather(hash_of(text));
  std::vector<int> others;
  for (int r = 1; r < world.size(); ++r) {
    if (hashes[static_cast<size_t>(r)] != hashes[0]) others.push_back(r);
  }
  if (others.empty()) return;
  const std::vector<std::string> hosts = world.gather(world.host());
  const auto facts_on = [&](int rank) {
    return nlohmann::json::parse(world.broadcast(text, rank)).get<Facts>();
  };
  const Facts first = facts_on(0), other = facts_on(others[0]);
  std::vector<std::string> names;
  for (const int rank : others) {
    names.push_back(fmt::format("{} ({})", rank, hosts[static_cast<size_t>(rank)]));
  }
  if (names.size() > kMostDifferences) {
    names.resize(kMostDifferences);
    names.push_back(fmt::format("and {} more", others.size() - kMostDifferences));
  }
  throw SharedError(fmt::format(
      "the ranks were given different things, and would train different models: rank {} differs "
      "from rank 0 ({}) in {}; start all ranks with the same",
      fmt::join(names, ", "), hosts[0], fmt::join(differences(first, other, others[0]), "; ")));
}

Facts facts_of_start(World& world, Recipe& recipe, const RunnerOptions& options) {
  Facts facts;
  facts["program (XXH3 of its file)"] = hash_of(read_text_file("/proc/self/exe"));
  // Without its line on the CPU, which is told by itself.
  const std::string config = at::show_config();
  facts["LibTorch (XXH3 of its configuration)"] = hash_of(config.substr(0, config.find("CPU cap")));
  facts["CPU capability"] = at::get_cpu_capability();
  // On a CPU the number of threads decides in which order a norm is summed.
  facts["device"] = device_name(world.device());
  facts["--from"] = options.from;
  facts["beginning"] = fmt::format("'{}', stage {}, step {}", recipe.begin.checkpoint,
                                   recipe.begin.stage, recipe.begin.step);
  facts["--export"] = options.export_to;
  for (const auto& [path, value] : recipe_values(recipe)) facts[path] = value;
  return facts;
}

}  // namespace sala
