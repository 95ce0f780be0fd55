// Stores with wrong bytes anywhere in the HDF5 file: each is read as it was, or refused in one line
// that names it. Never a crash, never other tokens.
#include <gtest/gtest.h>

#include <fstream>

#include "data/shuffle.h"
#include "data/source.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

struct Content {
  std::vector<std::int64_t> offsets;
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> mask;
  bool operator==(const Content&) const = default;
};

Content read_whole(const std::string& path) {
  const TokenStore store(path);
  store.verify_checksum();
  const std::int64_t count = store.facts().num_tokens;
  store.has_target();
  return {store.read_offsets(), store.read(0, count), store.read_loss_mask(0, count)};
}

// One to four bytes flipped, or a run of them set, or the file cut: which and where by `n`.
std::string mutate(std::string bytes, std::uint64_t n) {
  const auto draw = [&](std::uint64_t i, std::uint64_t limit) {
    return counter_random_below(n, i, limit);
  };
  const std::uint64_t kind = draw(0, 8);
  if (kind == 0) return bytes.substr(0, draw(1, bytes.size()));
  if (kind == 1) {
    const std::uint64_t at = draw(1, bytes.size());
    const std::uint64_t length = std::min<std::uint64_t>(1 + draw(2, 64), bytes.size() - at);
    return bytes.replace(at, length, length, draw(3, 2) == 0 ? '\0' : '\xff');
  }
  for (std::uint64_t i = 0; i <= draw(4, 4); ++i) {
    char& byte = bytes[draw(5 + 2 * i, bytes.size())];
    byte = static_cast<char>(static_cast<std::uint64_t>(byte) ^ (1 + draw(6 + 2 * i, 255)));
  }
  return bytes;
}

TEST(MutatedStores, AreReadAsTheyWereOrRefusedByName) {
  constexpr int kMutations = 400;
  const TestFolder folder;
  TestStore store = numbered_documents(20, 30, 4);
  for (const auto& document : store.documents) store.masks.emplace_back(document.size(), 1);
  write_store(folder / "right.h5", store);
  const Content right = read_whole(folder / "right.h5");
  std::ifstream in(folder / "right.h5", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  const std::string path = folder / "spoilt.h5";
  int refused = 0;
  for (int n = 0; n < kMutations; ++n) {
    SCOPED_TRACE(n);
    std::ofstream(path, std::ios::binary) << mutate(bytes, static_cast<std::uint64_t>(n));
    try {
      EXPECT_TRUE(read_whole(path) == right);
    } catch (const std::runtime_error& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.rfind(path, 0), 0u) << text;
      EXPECT_TRUE(std::all_of(text.begin(), text.end(), [](char c) {
        return c >= ' ' && c <= '~';
      })) << text;
      ++refused;
    }
  }
  EXPECT_GT(refused, kMutations / 20);  // most bytes of so small a file are unused
}

}  // namespace
}  // namespace sala
