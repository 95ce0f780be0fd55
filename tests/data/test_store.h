// Helpers of the data tests: a temporary folder, "this throws one line that says …", and token
// stores written through the product's own HDF5 door.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/files/hash.h"
#include "data/files/hdf5_file.h"

namespace sala {

class TestFolder {
 public:
  TestFolder() {
    static std::atomic<int> counter{0};
    path_ = std::filesystem::temp_directory_path() /
            ("sala_data_test_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// `action` must throw std::runtime_error; its message is one line and holds every part.
inline void expect_error(const std::function<void()>& action,
                         const std::vector<std::string>& parts) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "`" << part << "` not in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "nothing was thrown";
}

// One token store as the tests want it; every field may be made wrong.
struct TestStore {
  std::vector<std::vector<std::int32_t>> documents;  // each ends with eos_id
  std::vector<std::vector<std::uint8_t>> masks;      // empty: no loss_mask
  std::int64_t vocab_size = 1000;
  std::int64_t eos_id = 0;
  std::string source = "test";
  std::string tokenizer_hash = "0123456789abcdef";
  std::string format = "sala-token-store";
  bool wide = false;              // tokens as u32
  std::string drop_attribute;     // one attribute left out
  std::int64_t count_error = 0;   // added to num_tokens
  std::int64_t offset_error = 0;  // added to the second document offset
};

template <class Token>
void append_tokens(const TestStore& store, Hdf5File& file, Xxh3Stream& hash) {
  std::vector<Token> tokens;
  for (const auto& document : store.documents) {
    tokens.insert(tokens.end(), document.begin(), document.end());
  }
  file.write_all("tokens", tokens, 65536);
  hash.update(tokens.data(), tokens.size() * sizeof(Token));
}

inline void write_store(const std::string& path, const TestStore& store) {
  Hdf5File file = Hdf5File::create(path);
  Xxh3Stream hash(Xxh3Width::k64);
  if (store.wide) {
    append_tokens<std::uint32_t>(store, file, hash);
  } else {
    append_tokens<std::uint16_t>(store, file, hash);
  }
  std::vector<std::int64_t> offsets = {0};
  for (const auto& document : store.documents) {
    offsets.push_back(offsets.back() + static_cast<std::int64_t>(document.size()));
  }
  const std::int64_t num_tokens = offsets.back();
  if (offsets.size() > 1) offsets[1] += store.offset_error;
  file.write_all("document_offsets", offsets);
  hash.update(offsets.data(), offsets.size() * sizeof(std::int64_t));
  if (!store.masks.empty()) {
    std::vector<std::uint8_t> mask;
    for (const auto& part : store.masks) mask.insert(mask.end(), part.begin(), part.end());
    file.write_all("loss_mask", mask);
    hash.update(mask.data(), mask.size());
  }
  const auto put = [&](const std::string& key, const auto& value) {
    if (key != store.drop_attribute) file.set_attribute(key, value);
  };
  put("format", store.format);
  put("vocab_size", store.vocab_size);
  put("eos_id", store.eos_id);
  put("tokenizer_hash", store.tokenizer_hash);
  put("source", store.source);
  put("num_tokens", num_tokens + store.count_error);
  put("num_documents", static_cast<std::int64_t>(store.documents.size()));
  put("xxh3", hash.hex());
  file.commit();
}

// Documents whose tokens tell where they came from: token i of document d is a hash of (salt, d,
// i), below `vocab_size`, never 0; the last one is 0 (EOS). Lengths run from 1 to `longest`.
inline TestStore numbered_documents(std::int64_t count, std::int64_t longest, std::uint64_t salt,
                                    std::int64_t vocab_size = 1000) {
  TestStore store;
  store.vocab_size = vocab_size;
  const auto draw = [&](std::uint64_t a, std::uint64_t b) {
    const std::uint64_t key[3] = {salt, a, b};
    return xxh3_64(key, sizeof key);
  };
  for (std::int64_t d = 0; d < count; ++d) {
    const auto length = 1 + draw(d, 1u << 30) % static_cast<std::uint64_t>(longest);
    std::vector<std::int32_t> document;
    for (std::uint64_t i = 0; i + 1 < length; ++i) {
      document.push_back(static_cast<std::int32_t>(1 + draw(d, i) % (vocab_size - 1)));
    }
    document.push_back(0);
    store.documents.push_back(document);
  }
  return store;
}

}  // namespace sala
