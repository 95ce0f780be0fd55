// SHA-256 against the standard's own examples, in pieces of every size.
#include "data/files/sha256.h"

#include <gtest/gtest.h>

#include <string>

namespace sala {
namespace {

std::string hash_of(const std::string& text) {
  Sha256 hash;
  hash.update(text.data(), text.size());
  return hash.hex();
}

TEST(Sha256, TheStandardsExamples) {
  EXPECT_EQ(hash_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_of(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesMakeNoDifference) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 7);
  for (size_t length : {0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 300}) {
    const std::string whole = text.substr(0, length);
    for (size_t piece : {1, 3, 64, 100}) {
      Sha256 hash;
      for (size_t at = 0; at < length; at += piece) {
        hash.update(whole.data() + at, std::min(piece, length - at));
        hash.hex();  // may be asked for at any time
      }
      EXPECT_EQ(hash.hex(), hash_of(whole)) << length << " in pieces of " << piece;
    }
  }
}

}  // namespace
}  // namespace sala
