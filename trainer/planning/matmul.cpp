// Products by name and size, those of equal mixers once.
#include "trainer/planning/matmul.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace sala {

namespace {

// Products of one size, with the mixers of the layers that have it.
struct Listed {
  BlockProduct product;
  std::vector<std::string> mixers;
};

std::vector<Listed> listed_products(const ModelConfig& config, size_t& num_mixers) {
  std::vector<Listed> list;
  std::vector<Mixer> seen;
  for (const Mixer mixer : config.mixers) {
    if (std::find(seen.begin(), seen.end(), mixer) != seen.end()) continue;
    seen.push_back(mixer);
    for (const BlockProduct& product : block_products(config, mixer)) {
      const auto same = [&](const Listed& other) {
        const auto key = [](const BlockProduct& p) {
          return std::tuple(std::string(p.name), p.in, p.out);
        };
        return key(other.product) == key(product);
      };
      auto found = std::find_if(list.begin(), list.end(), same);
      if (found == list.end()) found = list.insert(list.end(), {product, {}});
      found->mixers.push_back(to_string(mixer));
    }
  }
  num_mixers = seen.size();
  return list;
}

}  // namespace

std::string matmul_text(const ModelConfig& config, int64_t tokens, const Matmul& matmul,
                        int64_t of_feed_forward) {
  if (matmul.fp8_from == 0) return "";
  size_t num_mixers = 0;
  std::vector<std::string> in_fp8, not_in_fp8;
  for (const Listed& listed : listed_products(config, num_mixers)) {
    const BlockProduct& product = listed.product;
    std::string text = fmt::format("{} ({} to {}", product.name, product.in, product.out);
    if (listed.mixers.size() < num_mixers) {
      text += fmt::format(", {}", fmt::join(listed.mixers, " and "));
    }
    const std::string reason =
        matmul.why_not_fp8(product.feed_forward && of_feed_forward > 0 ? of_feed_forward : tokens,
                           product.in, product.out);
    if (reason.empty()) {
      in_fp8.push_back(text + ")");
    } else {
      not_in_fp8.push_back(text + "; " + reason + ")");
    }
  }
  std::string text = matmul.fp8_gradients ? "in FP8, forward and gradients of inputs and weights: "
                                          : "in FP8, forward and gradients of inputs: ";
  text += in_fp8.empty() ? "nothing" : fmt::format("{}", fmt::join(in_fp8, ", "));
  if (!not_in_fp8.empty()) text += fmt::format("; not: {}", fmt::join(not_in_fp8, ", "));
  return text + (matmul.fp8_gradients ? "; everything else is not"
                                      : "; weight gradients and everything else are not");
}

}  // namespace sala
