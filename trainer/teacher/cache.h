// A teacher cache in use by a stage: found and opened by all ranks together, read a step ahead,
// written where it has holes. Each rank writes parts of its own; any number of ranks reads them.
#pragma once

#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/source.h"
#include "data/teacher/folder.h"
#include "trainer/journal/folder_lock.h"
#include "trainer/recipe/recipe.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/world.h"

namespace sala {

// How a stage cuts its teacher.
struct TopkOptions {
  int64_t topk = 0;             // 0: not at all
  std::string values = "fp16";  // fp16 | fp32
  std::string cache;            // folder; empty: nothing is kept
};

// What the rows of a stage are made of, as far as recipe and stores tell; that they are the same
// rows is seen when they are read, token by token. `fingerprints`: of the stage's sources.
nlohmann::json cache_facts(const Recipe& recipe, const TokenBudget& budget,
                           const TopkOptions& options, double temperature, int64_t vocab_size,
                           const std::map<std::string, std::string>& fingerprints);
// The teacher's part of the facts, by what a run knows of its inputs (input_identity.h).
nlohmann::json teacher_facts(const nlohmann::json& inputs);
// One line where the cache at `folder` is of other facts; empty where it is not, or is not there.
std::string why_other_cache(const std::string& folder, const nlohmann::json& there,
                            const nlohmann::json& here);

class TeacherCache {
 public:
  // All ranks together. `num_tokens`: of the whole stage. Where not all of them are there the
  // folder is locked, made where it has to be, and written to. SharedError: another cache,
  // a damaged part, another run that writes it.
  TeacherCache(World& world, const std::string& folder, const nlohmann::json& facts,
               int64_t num_tokens);

  bool complete() const { return covers(0, num_tokens_); }
  int64_t num_tokens_held() const { return reader_->index().num_tokens_before(num_tokens_); }
  // As it was opened: the same on all ranks.
  bool covers(int64_t begin, int64_t end) const { return reader_->index().covers(begin, end); }

  // [begin, end), which are covered. Begins to read [next, next + end - begin) after them.
  TopkTokens read(int64_t begin, int64_t end, int64_t next);
  void add(TopkTokens tokens) { writer_->add(std::move(tokens)); }
  // What was added is durable when the future is ready; invalid: nothing was.
  std::shared_future<void> make_durable() {
    return writer_ ? writer_->make_durable() : std::shared_future<void>();
  }

 private:
  int64_t num_tokens_;
  std::unique_ptr<FolderLock> lock_;  // rank 0, where something is missing
  std::unique_ptr<CacheReader> reader_;
  std::unique_ptr<CacheWriter> writer_;  // where something is missing
  int64_t ahead_begin_ = 0, ahead_end_ = 0;
  std::future<TopkTokens> ahead_;  // the last member: its end waits for the thread
};

}  // namespace sala
