// A set of tasks as the tests want it, written through the product's own HDF5 door; every field may
// be made wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/data/test_store.h"

namespace sala {

struct TestTasks {
  std::string format = "sala-tasks", hash = "0123456789abcdef", xxh3, index;
  std::int64_t vocab_size = 100, max_new_tokens = 4, num_prompts = 3;
  std::string reference = "Hi", match = "all";
  std::vector<std::uint16_t> tokens{5, 6, 7, 8, 8, 9};
  std::vector<std::int64_t> prompt_offsets{0, 3, 5, 6};
  std::vector<std::string> words{"", "Hi", " there", "!"};  // by id; 0 is special
  bool change_after_hash = false;                           // of the first prompt's ids

  std::string prompt(const std::string& task, std::int64_t length, const std::string& match,
                     size_t first, size_t count) const {
    return R"({"task": ")" + task + R"(", "length": )" + std::to_string(length) +
           R"(, "match": ")" + match + R"(", "max_new_tokens": )" + std::to_string(max_new_tokens) +
           R"(, "references": [")" + reference + R"("], "xxh3": ")" +
           xxh3_64_hex(tokens.data() + first, count * sizeof(std::uint16_t)) + "\"}";
  }

  // One prompt of one token for each.
  void set_lengths(const std::vector<std::int64_t>& lengths) {
    tokens.assign(lengths.size(), 5);
    prompt_offsets = {0};
    std::string prompts;
    for (const std::int64_t length : lengths) {
      const auto place = static_cast<size_t>(prompt_offsets.back());
      prompts += (place > 0 ? ", " : "") + prompt("niah", length, match, place, 1);
      prompt_offsets.push_back(prompt_offsets.back() + 1);
    }
    index = R"({"stop_ids": [0], "prompts": [)" + prompts + "]}";
    num_prompts = static_cast<std::int64_t>(lengths.size());
  }

  void write(const std::string& path) const {
    const std::string text =
        !index.empty()
            ? index
            : R"({"stop_ids": [0], "prompts": [)" + prompt("niah", 16, match, 0, 3) + ", " +
                  prompt("qa", 16, "part", 3, 2) + ", " + prompt("niah", 32, "all", 5, 1) + "]}";
    const std::vector<std::uint8_t> index_bytes(text.begin(), text.end());
    std::vector<std::uint8_t> vocabulary;
    std::vector<std::int64_t> vocabulary_offsets{0};
    for (const std::string& word : words) {
      vocabulary.insert(vocabulary.end(), word.begin(), word.end());
      vocabulary_offsets.push_back(static_cast<std::int64_t>(vocabulary.size()));
    }
    Xxh3Stream stream(Xxh3Width::k64);
    stream.update(prompt_offsets.data(), prompt_offsets.size() * 8);
    stream.update(index_bytes.data(), index_bytes.size());
    stream.update(vocabulary.data(), vocabulary.size());
    stream.update(vocabulary_offsets.data(), vocabulary_offsets.size() * 8);
    std::vector<std::uint16_t> stored = tokens;
    if (change_after_hash) stored[0] ^= 1;
    std::filesystem::remove(path);
    Hdf5File file = Hdf5File::create(path);
    file.write_all("tokens", stored);
    file.write_all("prompt_offsets", prompt_offsets);
    file.write_all("index", index_bytes);
    file.write_all("vocabulary", vocabulary);
    file.write_all("vocabulary_offsets", vocabulary_offsets);
    file.set_attribute("format", format);
    file.set_attribute("vocab_size", vocab_size);
    file.set_attribute("tokenizer_hash", hash);
    file.set_attribute("special_tokens", std::string("text"));
    file.set_attribute("num_prompts", num_prompts);
    file.set_attribute("num_tokens", static_cast<std::int64_t>(tokens.size()));
    file.set_attribute("xxh3", xxh3.empty() ? stream.hex() : xxh3);
    file.commit();
  }
};

}  // namespace sala
