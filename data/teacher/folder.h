// The folder of a teacher cache:
//
//   teacher.json            whose words it holds, of which rows, cut how: its facts
//   part-NUMBER-RANK.h5     data/teacher/part.h; numbers rise, a part is never written to again
//
// Whatever the moment of a crash, each part is whole or not there. Errors are std::runtime_error
// with one line that names the file and says what to do.
#pragma once

#include <cstdint>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/teacher/index.h"
#include "data/teacher/part.h"

namespace sala {

inline constexpr const char* kCacheFormat = "sala-teacher-cache";

struct CacheListing {
  nlohmann::json facts;  // null: no cache is there yet
  struct Part {
    std::string name;
    std::vector<TokenRange> pieces;
  };
  std::vector<Part> parts;  // oldest first
  std::int64_t next_number = 0;
};

// Opens every part, of which one that is damaged is an error.
CacheListing list_cache(const std::string& folder);
// The same for other processes.
std::string listing_text(const CacheListing& listing);
CacheListing listing_of(const std::string& text);

// Facts are {"format": kCacheFormat, "vocab_size", "topk", "values": fp16 | fp32, "rows": {…}, …};
// this is what a part has to know of them.
TopkFormat format_of(const nlohmann::json& facts);
void write_facts(const std::string& folder, const nlohmann::json& facts);
// What differs, a phrase each ("topk: 32 there, 64 here"). What `here` does not name is not
// compared, except in its rows, where nothing may be more or less.
std::vector<std::string> facts_differences(const nlohmann::json& there, const nlohmann::json& here);

// Where a writer was killed: files without their name.
void remove_unfinished_parts(const std::string& folder);

class CacheReader {
 public:
  CacheReader(std::string folder, CacheListing listing);
  const TopkIndex& index() const { return index_; }
  // [begin, end), which the index covers. Each piece is compared with its checksum.
  TopkTokens read(std::int64_t begin, std::int64_t end);

 private:
  const TopkTokens& piece(const TopkIndex::Place& place);

  std::string folder_;
  CacheListing listing_;
  TopkFormat format_;
  TopkIndex index_;
  std::map<std::size_t, TopkPart> open_;
  std::size_t last_part_ = 0, last_piece_ = 0;
  TopkTokens last_;
};

// One rank's parts: collected in memory, written by a thread, one after the other, while the next
// one fills.
class CacheWriter {
 public:
  CacheWriter(std::string folder, TopkFormat format, std::int64_t first_number, int rank);
  // Waits where the disk is slower than what is added: a part is written while the next one fills.
  // An error of the thread is thrown here or by the future.
  void add(TopkTokens tokens);
  // What was added is durable when the future is ready; invalid: nothing was.
  std::shared_future<void> make_durable();

 private:
  std::string folder_;
  TopkFormat format_;
  std::int64_t number_;
  int rank_;
  std::vector<TopkTokens> held_;
  std::int64_t held_bytes_ = 0;
  std::shared_future<void> writing_;  // the newest part, and with it those before
};

}  // namespace sala
