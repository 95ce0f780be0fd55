// Facts, opening, and reading ahead behind trainer/teacher/cache.h.
#include "trainer/teacher/cache.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/files/hash.h"

namespace sala {

nlohmann::json cache_facts(const Recipe& recipe, const TokenBudget& budget,
                           const TopkOptions& options, double temperature, int64_t vocab_size,
                           const std::map<std::string, std::string>& fingerprints) {
  double sum = 0;
  for (const auto& [source, weight] : budget.data) sum += weight;
  nlohmann::json sources = nlohmann::json::object();
  for (const auto& [source, weight] : budget.data) {
    sources[source] = {{"share", weight / sum}, {"stores", fingerprints.at(source)}};
  }
  return {{"format", kCacheFormat},
          {"vocab_size", vocab_size},
          {"topk", options.topk},
          {"values", options.values},
          {"temperature", temperature},
          {"rows",
           {{"row_length", budget.row_length},
            {"seed", recipe.run.seed},
            {"lanes", recipe.data.lanes},
            {"sources", sources}}}};
}

nlohmann::json teacher_facts(const nlohmann::json& inputs) {
  Xxh3Stream weights(Xxh3Width::k128);
  for (const auto& [file, facts] : inputs.at("weights").items()) {
    const auto hash = facts.at("hash").get<std::string>();
    weights.update(hash.data(), hash.size());
  }
  return {{"config", inputs.at("config")}, {"weights", weights.hex()}};
}

std::string why_other_cache(const std::string& folder, const nlohmann::json& there,
                            const nlohmann::json& here) {
  if (there.is_null()) return "";
  const auto differences = facts_differences(there, here);
  if (differences.empty()) return "";
  return fmt::format(
      "{} keeps the words of another teacher, or on other rows ({}); name another folder for this "
      "run, or delete that one",
      folder, fmt::join(differences, "; "));
}

TeacherCache::TeacherCache(World& world, const std::string& folder, const nlohmann::json& facts,
                           int64_t num_tokens)
    : num_tokens_(num_tokens) {
  CacheListing listing;
  bool complete = false;
  world.together("teacher cache " + folder, [&] {
    if (world.rank() != 0) return;
    const auto list = [&] {
      listing = list_cache(folder);
      const std::string other = why_other_cache(folder, listing.facts, facts);
      if (!other.empty()) throw std::runtime_error(other);
      complete = CacheReader(folder, listing).index().covers(0, num_tokens);
    };
    list();
    if (complete) return;
    lock_ = std::make_unique<FolderLock>(folder, "teacher_cache");
    list();  // as whoever held the lock until now has left it
    remove_unfinished_parts(folder);
    if (listing.facts.is_null()) {
      write_facts(folder, facts);
      listing.facts = facts;
    }
  });
  listing = listing_of(world.broadcast(listing_text(listing)));
  const TopkFormat format = format_of(listing.facts);
  const int64_t number = listing.next_number;
  reader_ = std::make_unique<CacheReader>(folder, std::move(listing));
  if (!this->complete()) {
    writer_ = std::make_unique<CacheWriter>(folder, format, number, world.rank());
  }
}

TopkTokens TeacherCache::read(int64_t begin, int64_t end, int64_t next) {
  TopkTokens tokens;
  // The thread is through before this one reads: the reader has one at a time.
  if (ahead_.valid()) tokens = ahead_.get();
  if (ahead_begin_ != begin || ahead_end_ != end || tokens.count() != end - begin) {
    tokens = reader_->read(begin, end);
  }
  ahead_begin_ = next;
  ahead_end_ = next + (end - begin);
  if (ahead_end_ <= num_tokens_ && covers(ahead_begin_, ahead_end_)) {
    ahead_ = std::async(std::launch::async,
                        [this, next, last = ahead_end_] { return reader_->read(next, last); });
  }
  return tokens;
}

}  // namespace sala
