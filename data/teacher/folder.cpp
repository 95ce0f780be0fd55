// Listing, reading and writing behind data/teacher/folder.h.
#include "data/teacher/folder.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hash.h"
#include "data/files/input_file.h"

namespace sala {
namespace {

using Json = nlohmann::json;

constexpr const char* kFactsName = "/teacher.json";
constexpr std::int64_t kPartBytes = std::int64_t{64} << 20;
constexpr std::size_t kMostOpenParts = 64;

std::string part_name(std::int64_t number, int rank) {
  char name[64];
  std::snprintf(name, sizeof name, "part-%08lld-%05d.h5", static_cast<long long>(number), rank);
  return name;
}

// Adds what can be done where a part is damaged, in our words or those of data/files/hdf5_file.h;
// an error of the system, or a part that is whole but in the wrong place, is no reason to delete.
template <class Work>
auto with_advice(const Work& work) {
  try {
    return work();
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    const auto says = [&](const char* words) { return what.find(words) != std::string::npos; };
    if (!says(": is damaged: ") && !says("; the file is truncated or damaged: ")) throw;
    throw std::runtime_error(what +
                             "; a damaged part of a teacher cache may be deleted: its tokens are "
                             "asked again");
  }
}

bool is_part(const std::string& name) { return name.starts_with("part-") && name.ends_with(".h5"); }

Json read_facts(const std::string& folder) {
  const std::string path = folder + kFactsName;
  if (!path_exists(path)) return nullptr;
  constexpr int64_t kMostBytes = int64_t{1} << 20;
  try {
    const Json facts = read_json_file(path, kMostBytes);
    if (facts.is_object() && facts.value("format", Json()) == kCacheFormat) {
      static_cast<void>(format_of(facts));
      return facts;
    }
  } catch (const FileError&) {  // the disk's: the facts may be right
    throw;
  } catch (const std::exception&) {  // said below
  }
  throw std::runtime_error(path +
                           ": expected the facts of a teacher cache, found something else; "
                           "delete the folder or name another one");
}

// Every value by its path, in words.
void flatten(const Json& json, const std::string& path, std::map<std::string, std::string>& out) {
  if (!json.is_object()) {
    out[path] = json.is_string() ? json.get<std::string>() : json.dump();
    return;
  }
  for (const auto& [key, value] : json.items()) {
    flatten(value, path.empty() ? key : path + "." + key, out);
  }
}

}  // namespace

TopkFormat format_of(const Json& facts) {
  const std::string text = facts.dump();
  TopkFormat format;
  format.topk = facts.at("topk").get<std::int64_t>();
  format.vocab_size = facts.at("vocab_size").get<std::int64_t>();
  format.half = facts.at("values").get<std::string>() == "fp16";
  format.cache = xxh3_64_hex(text.data(), text.size());
  return format;
}

void write_facts(const std::string& folder, const Json& facts) {
  make_folder_durably(folder);
  write_file_atomically(folder + kFactsName, facts.dump(1) + "\n");
}

std::vector<std::string> facts_differences(const Json& there, const Json& here) {
  std::map<std::string, std::string> a, b;
  flatten(there, "", a);
  flatten(here, "", b);
  std::vector<std::string> differences;
  for (const auto& [path, value] : b) {
    const auto other = a.find(path);
    if (other != a.end() && other->second == value) continue;
    differences.push_back(path + ": " + (other == a.end() ? "absent" : other->second) + " there, " +
                          value + " here");
  }
  for (const auto& [path, value] : a) {
    if (b.contains(path) || !path.starts_with("rows.")) continue;
    differences.push_back(path + ": " + value + " there, absent here");
  }
  return differences;
}

CacheListing list_cache(const std::string& folder) {
  CacheListing listing;
  if (!is_folder(folder)) return listing;
  listing.facts = read_facts(folder);
  for (const std::string& name : names_in_folder(folder)) {
    if (!is_part(name)) continue;
    if (listing.facts.is_null()) {
      throw std::runtime_error(folder + kFactsName +
                               " is missing beside the parts of a teacher cache: restore it, or "
                               "delete the folder");
    }
    listing.parts.push_back(
        {name, with_advice([&] {
           return TopkPart(folder + "/" + name, format_of(listing.facts)).pieces();
         })});
    listing.next_number =
        std::max<std::int64_t>(listing.next_number, std::atoll(name.c_str() + 5) + 1);
  }
  return listing;
}

std::string listing_text(const CacheListing& listing) {
  Json parts = Json::array();
  for (const CacheListing::Part& part : listing.parts) {
    Json pieces = Json::array();
    for (const TokenRange& piece : part.pieces) pieces.push_back({piece.begin, piece.count});
    parts.push_back({part.name, pieces});
  }
  return Json{{"facts", listing.facts}, {"parts", parts}, {"next", listing.next_number}}.dump();
}

CacheListing listing_of(const std::string& text) {
  const Json json = Json::parse(text);
  CacheListing listing;
  listing.facts = json.at("facts");
  listing.next_number = json.at("next").get<std::int64_t>();
  for (const Json& part : json.at("parts")) {
    CacheListing::Part& added = listing.parts.emplace_back();
    added.name = part.at(0).get<std::string>();
    for (const Json& piece : part.at(1)) {
      added.pieces.push_back({piece.at(0).get<std::int64_t>(), piece.at(1).get<std::int64_t>()});
    }
  }
  return listing;
}

void remove_unfinished_parts(const std::string& folder) {
  for (const std::string& name : names_in_folder(folder)) {
    if (!name.ends_with(".tmp") || !is_part(name.substr(0, name.size() - 4))) continue;
    const std::string path = folder + "/" + name;
    if (::unlink(path.c_str()) != 0) throw FileError(path, "remove it", errno);
  }
}

CacheReader::CacheReader(std::string folder, CacheListing listing)
    : folder_(std::move(folder)), listing_(std::move(listing)) {
  if (listing_.facts.is_null()) return;
  format_ = format_of(listing_.facts);
  for (std::size_t part = listing_.parts.size(); part-- > 0;) {  // the newest words count
    const auto& pieces = listing_.parts[part].pieces;
    for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
      index_.add(part, piece, pieces[piece]);
    }
  }
}

const TopkTokens& CacheReader::piece(const TopkIndex::Place& place) {
  if (last_.count() > 0 && last_part_ == place.part && last_piece_ == place.piece) return last_;
  last_ = with_advice([&] {
    if (!open_.contains(place.part)) {
      if (open_.size() >= kMostOpenParts) open_.clear();
      open_.emplace(place.part, TopkPart(folder_ + "/" + listing_.parts[place.part].name, format_));
    }
    return open_.at(place.part).read(place.piece);
  });
  last_part_ = place.part;
  last_piece_ = place.piece;
  return last_;
}

TopkTokens CacheReader::read(std::int64_t begin, std::int64_t end) {
  TopkTokens tokens = empty_tokens(format_, begin, end - begin);
  for (const TopkIndex::Place& place : index_.places(begin, end)) {
    const TopkTokens& from = piece(place);
    const std::int64_t to = place.begin - begin;
    std::copy_n(from.ids.begin() + place.skip, place.count, tokens.ids.begin() + to);
    std::copy_n(from.position.begin() + place.skip, place.count, tokens.position.begin() + to);
    for (const auto& [out, in] : {std::pair{&tokens.top_ids, &from.top_ids},
                                  {&tokens.log_p, &from.log_p},
                                  {&tokens.log_tail, &from.log_tail}}) {
      out->narrow(0, to, place.count).copy_(in->narrow(0, place.skip, place.count));
    }
  }
  return tokens;
}

CacheWriter::CacheWriter(std::string folder, TopkFormat format, std::int64_t first_number, int rank)
    : folder_(std::move(folder)), format_(std::move(format)), number_(first_number), rank_(rank) {}

void CacheWriter::add(TopkTokens tokens) {
  held_bytes_ += tokens.count() * format_.bytes_per_token();
  held_.push_back(std::move(tokens));
  if (held_bytes_ < kPartBytes) return;
  if (writing_.valid()) writing_.get();
  make_durable();
}

std::shared_future<void> CacheWriter::make_durable() {
  if (held_.empty()) return writing_;
  // The thread lets go of the part before its own, which else would be held by the newest for ever.
  writing_ = std::async(std::launch::async, [path = folder_ + "/" + part_name(number_++, rank_),
                                             format = format_, tokens = std::exchange(held_, {}),
                                             before = writing_]() mutable {
               if (before.valid()) before.get();
               before = {};
               write_topk_part(path, format, std::exchange(tokens, {}));
             }).share();
  held_bytes_ = 0;
  return writing_;
}

}  // namespace sala
