// Reading, checking and scoring behind data/questions/task_set.h.
#include "data/questions/task_set.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/files/hash.h"
#include "data/questions/item_file.h"
#include "data/shuffle.h"

namespace sala {
namespace {

const char* const kAgain = "; make the set again with data/prepare ruler";
// All but the prompts' tokens, in the order of the checksum.
const char* const kSmall[] = {"prompt_offsets", "index", "vocabulary", "vocabulary_offsets"};

bool is_printable(const std::string& text) {
  return !text.empty() && text.front() != ' ' && text.back() != ' ' &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

TaskSet::TaskSet(const std::string& path, const TokenizerIdentity& expected)
    : file_(Hdf5File::open(path)) {
  check_head(expected);
  check_sizes();
  verify_checksum();
  read_offsets("prompt_offsets", num_tokens_, prompt_offsets_);
  vocabulary_ = file_.read_all<std::uint8_t>("vocabulary");
  read_offsets("vocabulary_offsets", static_cast<std::int64_t>(vocabulary_.size()),
               vocabulary_offsets_);
  try {
    read_index();
  } catch (const nlohmann::json::exception& error) {
    fail(std::string("dataset `index` is not as expected (") + error.what() + ")" + kAgain);
  }
}

void TaskSet::fail(const std::string& what) const {
  throw std::runtime_error(file_.path() + ": " + what);
}

void TaskSet::check_head(const TokenizerIdentity& expected) {
  if (!file_.has_attribute("format") || file_.attribute_string("format") != "sala-tasks") {
    fail(
        "expected attribute `format` sala-tasks; this is no set of tasks, make one with "
        "data/prepare ruler");
  }
  vocab_size_ = file_.attribute_int("vocab_size");
  num_prompts_ = file_.attribute_int("num_prompts");
  num_tokens_ = file_.attribute_int("num_tokens");
  if (vocab_size_ < 1 || vocab_size_ > std::numeric_limits<std::int32_t>::max() ||
      num_prompts_ < 1 || num_tokens_ < num_prompts_) {
    fail("attributes `vocab_size`, `num_prompts` and `num_tokens` are " +
         std::to_string(vocab_size_) + ", " + std::to_string(num_prompts_) + " and " +
         std::to_string(num_tokens_) + kAgain);
  }
  check_items_tokenizer(file_.path(), file_.attribute_string("tokenizer_hash"), vocab_size_,
                        expected);
}

// Before memory is asked for: the format has no filter, so no dataset is larger than the file.
void TaskSet::check_sizes() const {
  const std::int64_t num_bytes = file_.identity().num_bytes;
  const auto expect = [&](const char* name, Hdf5Type type, std::int64_t count) {
    if (file_.type(name) != type) {
      fail(std::string("dataset `") + name + "` expected " + hdf5_type_name(type) + ", found " +
           hdf5_type_name(file_.type(name)) + kAgain);
    }
    const auto shape = file_.shape(name);
    if (shape.size() != 1 || (count >= 0 && shape[0] != count) ||
        shape[0] > num_bytes / element_size(type)) {
      fail(std::string("dataset `") + name + "` has " + std::to_string(file_.num_elements(name)) +
           " elements, which is not what its file holds" + kAgain);
    }
  };
  const Hdf5Type tokens = file_.type("tokens");
  expect("tokens", tokens == Hdf5Type::kU32 ? tokens : Hdf5Type::kU16, num_tokens_);
  expect("prompt_offsets", Hdf5Type::kI64, num_prompts_ + 1);
  expect("index", Hdf5Type::kU8, -1);
  expect("vocabulary", Hdf5Type::kU8, -1);
  expect("vocabulary_offsets", Hdf5Type::kI64, -1);
}

void TaskSet::verify_checksum() const {
  Xxh3Stream hash(Xxh3Width::k64);
  for (const char* name : kSmall) {
    const Hdf5Type type = file_.type(name);
    const std::int64_t count = file_.num_elements(name);
    std::vector<std::uint8_t> bytes(static_cast<size_t>(count * element_size(type)));
    file_.read_raw(name, type, 0, count, bytes.data());
    hash.update(bytes.data(), bytes.size());
  }
  if (hash.hex() != file_.attribute_string("xxh3")) {
    fail(std::string("checksum mismatch: the file is damaged; restore it") + kAgain);
  }
}

void TaskSet::read_offsets(const char* name, std::int64_t total,
                           std::vector<std::int64_t>& out) const {
  out = file_.read_all<std::int64_t>(name);
  const bool ends = !out.empty() && out.front() == 0 && out.back() == total;
  if (!ends || !std::is_sorted(out.begin(), out.end())) {
    fail(std::string("dataset `") + name + "` does not rise from 0 to " + std::to_string(total) +
         kAgain);
  }
}

void TaskSet::read_index() {
  token_type_ = file_.type("tokens");
  const auto bytes = file_.read_all<std::uint8_t>("index");
  const auto index = nlohmann::json::parse(bytes.begin(), bytes.end());
  stop_ids_ = index.at("stop_ids").get<std::vector<std::int64_t>>();
  for (const auto& item : index.at("prompts")) {
    const std::int64_t number = size();
    const std::string where = "prompt " + std::to_string(number);
    if (number == num_prompts_)
      fail("`index` lists more prompts than there are" + std::string(kAgain));
    TaskPrompt prompt;
    prompt.task = item.at("task").get<std::string>();
    prompt.length = item.at("length").get<std::int64_t>();
    prompt.num_tokens = prompt_offsets_[number + 1] - prompt_offsets_[number];
    prompt.max_new_tokens = item.at("max_new_tokens").get<std::int64_t>();
    prompt.match_all = item.at("match") == "all";
    if (!prompt.match_all && item.at("match") != "part") {
      fail(where + ": `match` is neither all nor part" + kAgain);
    }
    prompt.references = item.at("references").get<std::vector<std::string>>();
    prompt.checksum = item.at("xxh3").get<std::string>();
    if (prompt.num_tokens < 1 || prompt.max_new_tokens < 1 ||
        prompt.num_tokens > prompt.length - prompt.max_new_tokens) {
      fail(where + ": " + std::to_string(prompt.num_tokens) + " tokens and an answer of " +
           std::to_string(prompt.max_new_tokens) + " have no room in a length of " +
           std::to_string(prompt.length) + kAgain);
    }
    if (!is_printable(prompt.task) || prompt.references.empty() ||
        !std::all_of(prompt.references.begin(), prompt.references.end(), is_printable)) {
      fail(where + ": expected a task and references in printable ASCII" + kAgain);
    }
    prompts_.push_back(std::move(prompt));
  }
  if (size() != num_prompts_)
    fail("`index` lists fewer prompts than there are" + std::string(kAgain));
}

std::vector<std::int64_t> TaskSet::ids(std::int64_t index) const {
  const TaskPrompt& prompt = prompts_.at(static_cast<size_t>(index));
  std::vector<std::uint8_t> bytes(
      static_cast<size_t>(prompt.num_tokens * element_size(token_type_)));
  file_.read_raw("tokens", token_type_, prompt_offsets_[index], prompt.num_tokens, bytes.data());
  if (xxh3_64_hex(bytes.data(), bytes.size()) != prompt.checksum) {
    fail("prompt " + std::to_string(index) +
         ": checksum mismatch, the file is damaged; restore it" + kAgain);
  }
  std::vector<std::int64_t> ids;
  const size_t step = static_cast<size_t>(element_size(token_type_));
  for (size_t at = 0; at < bytes.size(); at += step) {
    std::int64_t id = 0;
    for (size_t b = 0; b < step; ++b) id |= static_cast<std::int64_t>(bytes[at + b]) << (8 * b);
    if (id >= vocab_size_) {
      fail("prompt " + std::to_string(index) + ": id " + std::to_string(id) +
           " is outside the vocabulary of " + std::to_string(vocab_size_) + kAgain);
    }
    ids.push_back(id);
  }
  return ids;
}

std::string TaskSet::text(const std::vector<std::int64_t>& ids) const {
  std::string text;
  for (const std::int64_t id : ids) {
    if (id < 0 || id + 1 >= static_cast<std::int64_t>(vocabulary_offsets_.size())) continue;
    text.append(vocabulary_.begin() + vocabulary_offsets_[id],
                vocabulary_.begin() + vocabulary_offsets_[id + 1]);
  }
  return text;
}

std::vector<std::string> TaskSet::tasks() const {
  std::vector<std::string> names;
  for (const TaskPrompt& prompt : prompts_) {
    if (std::find(names.begin(), names.end(), prompt.task) == names.end()) {
      names.push_back(prompt.task);
    }
  }
  return names;
}

std::map<std::int64_t, std::int64_t> TaskSet::lengths() const {
  std::map<std::int64_t, std::int64_t> counts;
  for (const TaskPrompt& prompt : prompts_) ++counts[prompt.length];
  return counts;
}

std::vector<std::int64_t> TaskSet::prompts_of(const std::string& task, std::int64_t length,
                                              std::int64_t most, std::uint64_t seed) const {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < size(); ++i) {
    if (prompts_[i].task == task && prompts_[i].length == length) all.push_back(i);
  }
  const auto count = static_cast<std::int64_t>(all.size());
  if (count <= most) return all;
  const EpochOrder order(seed, task, length, count);
  std::vector<std::int64_t> chosen;
  for (std::int64_t i = 0; i < most; ++i) chosen.push_back(all[order.document(i)]);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// Stripping the answer, which RULER does too, changes nothing: no reference begins or ends with
// white space.
double answer_score(const TaskPrompt& prompt, std::string answer) {
  for (char& c : answer) c = static_cast<unsigned char>(c) < ' ' ? '\n' : lower(c);
  double found = 0;
  for (std::string reference : prompt.references) {
    std::transform(reference.begin(), reference.end(), reference.begin(), lower);
    found += answer.find(reference) != std::string::npos ? 1 : 0;
  }
  if (!prompt.match_all) return found > 0 ? 1 : 0;
  return found / static_cast<double>(prompt.references.size());
}

}  // namespace sala
