// Token stores: what is written is read, and everything wrong with a file is one line that names
// it.
#include "data/stores/token_store.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "data/packing.h"
#include "data/source.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

TestStore small_store() {
  TestStore store;
  store.documents = {{5, 6, 7, 0}, {0}, {9, 999, 0}};
  return store;
}

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(TokenStore, ReadsBackEveryDocumentInBothWidths) {
  const TestFolder folder;
  TestStore store = small_store();
  for (const bool wide : {false, true}) {
    store.wide = wide;
    const std::string path = folder / (wide ? "wide.h5" : "narrow.h5");
    write_store(path, store);
    const TokenStore opened(path, {"0123456789abcdef", 1000});
    ASSERT_EQ(opened.facts().num_documents, 3);
    EXPECT_EQ(opened.facts().num_tokens, 8);
    EXPECT_EQ(opened.facts().vocab_size, 1000);
    const auto offsets = opened.read_offsets();
    EXPECT_EQ(offsets, (std::vector<std::int64_t>{0, 4, 5, 8}));
    for (size_t d = 0; d < 3; ++d) {
      EXPECT_EQ(opened.read(offsets[d], offsets[d + 1] - offsets[d]), store.documents[d]);
    }
    EXPECT_EQ(opened.read(1, 2), (std::vector<std::int32_t>{6, 7}));
    EXPECT_EQ(opened.read_loss_mask(0, 4), (std::vector<std::uint8_t>{1, 1, 1, 1}));
    expect_error([&] { opened.read(7, 2); }, {path, "no tokens 7", "8"});
    EXPECT_NO_THROW(opened.verify_checksum());
  }
}

TEST(TokenStore, ReadsTheLossMask) {
  const TestFolder folder;
  TestStore store = small_store();
  store.masks = {{0, 0, 1, 1}, {0}, {1, 0, 1}};
  write_store(folder / "m.h5", store);
  const TokenStore opened(folder / "m.h5");
  EXPECT_TRUE(opened.facts().has_loss_mask);
  EXPECT_EQ(opened.read_loss_mask(6, 2), (std::vector<std::uint8_t>{0, 1}));
  EXPECT_NO_THROW(opened.verify_checksum());
}

// A document's first token is never a target, whatever its mask says.
TEST(TokenStore, KnowsWhetherAnyTokenIsATarget) {
  const TestFolder folder;
  const auto has_target = [&](const std::vector<std::vector<std::uint8_t>>& masks) {
    TestStore store = small_store();
    store.masks = masks;
    write_store(folder / "m.h5", store);
    return TokenStore(folder / "m.h5").has_target();
  };
  EXPECT_TRUE(has_target({}));
  EXPECT_TRUE(has_target({{0, 0, 0, 0}, {0}, {0, 0, 1}}));
  EXPECT_FALSE(has_target({{0, 0, 0, 0}, {0}, {0, 0, 0}}));
  EXPECT_FALSE(has_target({{1, 0, 0, 0}, {1}, {1, 0, 0}}));
}

// Each row of the table: how the store is spoilt, and what the message must say.
TEST(TokenStore, WrongFilesAreRefusedWithTheirName) {
  struct Case {
    const char* name;
    std::function<void(TestStore&)> spoil;
    std::vector<std::string> says;
  };
  const std::vector<Case> cases = {
      {"format", [](TestStore& s) { s.format = "something"; }, {"format", "something"}},
      {"no_format", [](TestStore& s) { s.drop_attribute = "format"; }, {"format", "data/prepare"}},
      {"no_vocab", [](TestStore& s) { s.drop_attribute = "vocab_size"; }, {"`vocab_size`"}},
      {"no_eos", [](TestStore& s) { s.drop_attribute = "eos_id"; }, {"`eos_id`", "missing"}},
      {"no_hash", [](TestStore& s) { s.drop_attribute = "tokenizer_hash"; }, {"`tokenizer_hash`"}},
      {"no_source", [](TestStore& s) { s.drop_attribute = "source"; }, {"`source`"}},
      {"no_tokens", [](TestStore& s) { s.drop_attribute = "num_tokens"; }, {"`num_tokens`"}},
      {"no_documents", [](TestStore& s) { s.drop_attribute = "num_documents"; }, {"num_documents"}},
      {"no_xxh3", [](TestStore& s) { s.drop_attribute = "xxh3"; }, {"`xxh3`"}},
      {"count", [](TestStore& s) { s.count_error = 1; }, {"`tokens`", "8 elements", "9"}},
      {"offsets", [](TestStore& s) { s.offset_error = 1; }, {"document_offsets", "offset 2 is 5"}},
      {"eos", [](TestStore& s) { s.eos_id = 1000; }, {"`eos_id`", "1000"}},
      {"long_hash", [](TestStore& s) { s.tokenizer_hash += std::string(99, 'f'); }, {"a hash"}},
      {"hash_of_lines", [](TestStore& s) { s.tokenizer_hash = "a\nb"; }, {"`tokenizer_hash`"}},
      {"format_of_lines", [](TestStore& s) { s.format = "a\n\xff"; }, {"unreadable"}},
      {"vocab", [](TestStore& s) { s.vocab_size = 0; }, {"`vocab_size`", "0"}},
      {"tokenizer",
       [](TestStore& s) { s.tokenizer_hash = "ffff"; },
       {"another tokenizer", "0123456789abcdef", "ffff"}},
      {"too_many_ids", [](TestStore& s) { s.vocab_size = 1001; }, {"1001", "1000"}},
  };
  const TestFolder folder;
  for (const Case& one : cases) {
    TestStore store = small_store();
    one.spoil(store);
    const std::string path = folder / (std::string(one.name) + ".h5");
    write_store(path, store);
    std::vector<std::string> says = one.says;
    says.push_back(path);
    SCOPED_TRACE(one.name);
    expect_error(
        [&] {
          const TokenStore opened(path, {"0123456789abcdef", 1000});
          opened.read_offsets();
        },
        says);
  }
}

TEST(TokenStore, WrongElementTypesAndMissingDatasetsAreRefused) {
  const TestFolder folder;
  const auto make = [&](const std::string& name, bool tokens, bool signed_tokens, bool wide_mask) {
    Hdf5File file = Hdf5File::create(folder / name);
    if (signed_tokens) file.write_all("tokens", std::vector<std::int64_t>{1, 0});
    if (tokens) file.write_all("tokens", std::vector<std::uint16_t>{1, 0});
    file.write_all("document_offsets", std::vector<std::int64_t>{0, 2});
    if (wide_mask) file.write_all("loss_mask", std::vector<float>{1, 1});
    for (const char* key : {"vocab_size", "num_documents"})
      file.set_attribute(key, std::int64_t{1});
    file.set_attribute("vocab_size", std::int64_t{10});
    file.set_attribute("eos_id", std::int64_t{0});
    file.set_attribute("num_tokens", std::int64_t{2});
    file.set_attribute("format", std::string("sala-token-store"));
    for (const char* key : {"tokenizer_hash", "source", "xxh3"}) {
      file.set_attribute(key, std::string("x"));
    }
    file.commit();
    return folder / name;
  };
  expect_error([&] { TokenStore store(make("a.h5", false, true, false)); },
               {"a.h5", "`tokens`", "u16 or u32", "i64"});
  expect_error([&] { TokenStore store(make("b.h5", false, false, false)); },
               {"b.h5", "`tokens`", "missing"});
  expect_error([&] { TokenStore store(make("c.h5", true, false, true)); },
               {"c.h5", "`loss_mask`", "u8", "f32"});
}

TEST(TokenStore, AnIdOutsideTheVocabularyIsNamedWithItsOffset) {
  const TestFolder folder;
  TestStore store = small_store();
  store.vocab_size = 999;  // document 2 holds id 999 at element 6 of the file
  write_store(folder / "x.h5", store);
  const TokenStore opened(folder / "x.h5");
  EXPECT_NO_THROW(opened.read(0, 4));
  expect_error([&] { opened.read(5, 3); }, {"x.h5", "offset 6", "id 999", "vocab_size 999"});
}

// Losses on a GPU do not look at targets: what a row's last token predicts is checked here,
// although that token is in no row.
TEST(TokenStore, ATargetOutsideTheVocabularyNeverReachesARow) {
  const TestFolder folder;
  TestStore store;
  store.documents = {{1, 2, 3, 999, 0}};
  store.vocab_size = 999;
  write_store(folder / "x.h5", store);
  std::vector<Source> sources;
  sources.emplace_back(SourceSpec{"x", {folder / "x.h5"}, 1.0}, TokenizerIdentity{});
  const Row row = read_row(sources, {Piece{0, 0, 0, 2, false}});
  EXPECT_EQ(row.targets, (std::vector<std::int32_t>{2, 3}));
  expect_error([&] { read_row(sources, {Piece{0, 0, 0, 3, false}}); }, {"x.h5", "id 999"});
}

TEST(TokenStore, OneWrongByteFailsTheChecksum) {
  const TestFolder folder;
  TestStore store = small_store();
  store.documents = {{0x1111, 0x2222, 0x3333, 0}};
  store.vocab_size = 65536;
  write_store(folder / "x.h5", store);
  std::string bytes = read_bytes(folder / "x.h5");
  const size_t at = bytes.find("\x11\x11\x22\x22\x33\x33");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 2] ^= 1;
  write_bytes(folder / "x.h5", bytes);
  const TokenStore opened(folder / "x.h5");
  expect_error([&] { opened.verify_checksum(); }, {"x.h5", "checksum", "damaged"});
}

TEST(TokenStore, TruncationIsAnErrorAtAnyLength) {
  const TestFolder folder;
  write_store(folder / "x.h5", numbered_documents(50, 40, 1));
  const std::string bytes = read_bytes(folder / "x.h5");
  for (size_t kept = 0; kept < bytes.size(); kept += 997) {
    write_bytes(folder / "cut.h5", bytes.substr(0, kept));
    expect_error(
        [&] {
          const TokenStore opened(folder / "cut.h5");
          opened.verify_checksum();
        },
        {"cut.h5"});
  }
}

TEST(Source, NumbersDocumentsThroughItsFiles) {
  const TestFolder folder;
  TestStore store = small_store();
  write_store(folder / "s-0.h5", store);
  store.documents = {};
  write_store(folder / "s-1.h5", store);
  store.documents = {{1, 2, 3, 0}};
  write_store(folder / "s-2.h5", store);
  const auto files = expand_globs({folder / "s-*.h5", folder / "s-0.h5"});
  ASSERT_EQ(files,
            (std::vector<std::string>{folder / "s-0.h5", folder / "s-1.h5", folder / "s-2.h5"}));
  const Source source({"test", files, 1.0}, {});
  EXPECT_EQ(source.num_documents(), 4);
  EXPECT_EQ(source.num_tokens(), 12);
  EXPECT_EQ(source.document_length(2), 3);
  EXPECT_EQ(source.read(3, 1, 3), (std::vector<std::int32_t>{2, 3, 0}));
  expect_error([&] { source.read(3, 1, 4); }, {"`test`", "document 3"});
}

TEST(Source, BadSourcesAreNamed) {
  const TestFolder folder;
  TestStore store = small_store();
  write_store(folder / "a.h5", store);
  store.tokenizer_hash = "other";
  write_store(folder / "b.h5", store);
  store.documents = {};
  write_store(folder / "empty.h5", store);
  expect_error([&] { expand_globs({folder / "none-*.h5"}); }, {"none-*.h5", "no file matches"});
  expect_error([&] { Source({"web", {}, 1.0}, {}); }, {"`web`", "no file"});
  expect_error(
      [&] {
        Source({"web", {folder / "empty.h5"}, 1.0}, {});
      },
      {"`web`", "no document", "empty.h5"});
  expect_error([&] { Source({"web", {folder / "a.h5"}, 0.0}, {}); }, {"`web`", "weight"});
  expect_error(
      [&] {
        Source({"web", {folder / "a.h5", folder / "b.h5"}, 1.0}, {});
      },
      {"b.h5", "a.h5", "another tokenizer"});
}

}  // namespace
}  // namespace sala
