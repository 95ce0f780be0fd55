// A teacher cache's files: what was written comes back whatever the ranges asked for, and damage is
// an error that names the file.
#include "data/teacher/folder.h"

#include <gtest/gtest.h>

#include <array>
#include <fstream>

#include "data/files/atomic_file.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

nlohmann::json facts(int64_t topk = 3, int64_t vocab_size = 1000,
                     const std::string& values = "fp16") {
  return {{"format", kCacheFormat},
          {"topk", topk},
          {"vocab_size", vocab_size},
          {"values", values},
          {"rows", {{"row_length", 100}, {"sources", {{"a", {{"share", 0.5}}}}}}}};
}

// Values that tell their place in the stream, and `version`.
TopkTokens tokens_at(const TopkFormat& format, int64_t begin, int64_t count, int64_t version = 0) {
  TopkTokens tokens = empty_tokens(format, begin, count);
  for (int64_t t = 0; t < count; ++t) {
    tokens.ids[t] = static_cast<int32_t>((begin + t) % 977);
    tokens.position[t] = static_cast<int32_t>((begin + t) % 100);
    tokens.top_ids[t].copy_(at::arange(format.topk) + (begin + t) * 7 % 30000 + version);
    tokens.log_p[t].copy_(-at::arange(1, format.topk + 1) - 0.25 * ((begin + t) % 64));
    tokens.log_tail[t] = -0.125 * static_cast<double>(begin + t);
  }
  return tokens;
}

void expect_equal(const TopkTokens& a, const TopkTokens& b) {
  EXPECT_EQ(a.begin, b.begin);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.position, b.position);
  EXPECT_TRUE(at::equal(a.top_ids, b.top_ids));
  EXPECT_TRUE(at::equal(a.log_p, b.log_p));
  EXPECT_TRUE(at::equal(a.log_tail, b.log_tail));
}

void write(const std::string& folder, const nlohmann::json& of, int rank,
           const std::vector<TokenRange>& ranges) {
  const TopkFormat format = format_of(of);
  CacheWriter writer(folder, format, list_cache(folder).next_number, rank);
  for (const auto& [begin, count] : ranges) writer.add(tokens_at(format, begin, count));
  writer.make_durable().get();
}

void flip_byte(const std::string& path, const std::string& after) {
  std::string bytes = read_text_file(path);
  const size_t at = bytes.find(after);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string only_part(const std::string& folder) {
  const CacheListing listing = list_cache(folder);
  EXPECT_EQ(listing.parts.size(), 1u);
  return folder + "/" + listing.parts.at(0).name;
}

void expect_no_advice_to_delete(const std::string& folder) {
  try {
    list_cache(folder);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(std::string(error.what()).find("may be deleted"), std::string::npos) << error.what();
  }
}

}  // namespace

TEST(TeacherCache, GivesBackWhatRanksWroteInAnyRanges) {
  for (const auto& of : {facts(), facts(64, 1000, "fp32"), facts(5, 100'000), facts(1, 65536)}) {
    const TestFolder folder;
    const std::string cache = folder / "deep/cache";
    write_facts(cache, of);
    const TopkFormat format = format_of(of);
    // Two ranks in turns of odd lengths, one of several pieces, in several calls.
    write(cache, of, 0, {{0, 131}, {262, 131}});
    write(cache, of, 1, {{131, 131}, {393, 9001}});
    write(cache, of, 0, {{9394, 1}});
    CacheReader reader(cache, list_cache(cache));
    EXPECT_TRUE(reader.index().covers(0, 9395));
    EXPECT_FALSE(reader.index().covers(0, 9396));
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 9395}, {130, 132}, {261, 5000}, {9394, 9395}}) {
      expect_equal(reader.read(begin, end), tokens_at(format, begin, end - begin));
    }
    const CacheListing sent = listing_of(listing_text(list_cache(cache)));
    expect_equal(CacheReader(cache, sent).read(100, 400), tokens_at(format, 100, 300));
    EXPECT_EQ(sent.next_number, 3);
  }
}

TEST(TeacherCache, ReadsTheNewestWordsWherePartsOverlap) {
  const TestFolder folder;
  write_facts(folder.path(), facts());
  const TopkFormat format = format_of(facts());
  write(folder.path(), facts(), 0, {{0, 50}, {90, 30}});
  CacheWriter second(folder.path(), format, 1, 0);
  second.add(tokens_at(format, 20, 80, /*version=*/1));
  second.make_durable().get();
  CacheReader reader(folder.path(), list_cache(folder.path()));
  expect_equal(reader.read(0, 20), tokens_at(format, 0, 20));
  expect_equal(reader.read(20, 100), tokens_at(format, 20, 80, 1));
  expect_equal(reader.read(100, 120), tokens_at(format, 100, 20));
  EXPECT_EQ(reader.index().num_tokens_before(1000), 120);
  EXPECT_EQ(reader.index().num_tokens_before(95), 95);
}

// Parts that were begun one after the other are durable with the last one.
TEST(TeacherCache, PartsAreWrittenInTheirOrder) {
  const TestFolder folder;
  write_facts(folder.path(), facts());
  const TopkFormat format = format_of(facts());
  CacheWriter writer(folder.path(), format, 0, 0);
  EXPECT_FALSE(writer.make_durable().valid());
  std::shared_future<void> last;
  for (int64_t part = 0; part < 5; ++part) {
    writer.add(tokens_at(format, 100 * part, 100));
    last = writer.make_durable();
  }
  last.get();
  EXPECT_EQ(list_cache(folder.path()).parts.size(), 5u);
  CacheReader reader(folder.path(), list_cache(folder.path()));
  expect_equal(reader.read(0, 500), tokens_at(format, 0, 500));
}

TEST(TeacherCache, HasHolesWhereNothingWasWritten) {
  const TestFolder folder;
  write_facts(folder.path(), facts());
  EXPECT_FALSE(CacheReader(folder.path(), list_cache(folder.path())).index().covers(0, 1));
  write(folder.path(), facts(), 0, {{10, 5}, {20, 5}});
  CacheReader reader(folder.path(), list_cache(folder.path()));
  EXPECT_TRUE(reader.index().covers(10, 15));
  EXPECT_TRUE(reader.index().covers(7, 7));
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{9, 12}, {14, 16}, {12, 22}, {24, 26}, {30, 31}}) {
    EXPECT_FALSE(reader.index().covers(begin, end)) << begin << " to " << end;
  }
  EXPECT_EQ(reader.index().num_tokens_before(1000), 10);
}

TEST(TeacherCache, IsNotThereBeforeItsFacts) {
  const TestFolder folder;
  EXPECT_TRUE(list_cache(folder / "none").facts.is_null());
  EXPECT_TRUE(list_cache(folder.path()).facts.is_null());
  EXPECT_FALSE(CacheReader(folder / "none", list_cache(folder / "none")).index().covers(0, 1));
}

TEST(TeacherCache, AnUnfinishedPartIsNone) {
  const TestFolder folder;
  write_facts(folder.path(), facts());
  {
    CacheWriter writer(folder.path(), format_of(facts()), 0, 0);
    writer.add(tokens_at(format_of(facts()), 0, 10));  // and dies
  }
  std::ofstream(folder / "part-00000000-00003.h5.tmp") << "torn";
  std::ofstream(folder / "notes.txt") << "mine";
  EXPECT_TRUE(list_cache(folder.path()).parts.empty());
  remove_unfinished_parts(folder.path());
  EXPECT_FALSE(fs::exists(folder / "part-00000000-00003.h5.tmp"));
  EXPECT_TRUE(fs::exists(folder / "notes.txt"));
}

TEST(TeacherCache, DamageIsNamed) {
  const auto damaged = [](const std::function<void(const std::string&)>& damage,
                          const std::vector<std::string>& words, int64_t begin = 0) {
    const TestFolder folder;
    write_facts(folder.path(), facts(3, 1000, "fp32"));
    write(folder.path(), facts(3, 1000, "fp32"), 0, {{0, 400}});
    const std::string part = only_part(folder.path());
    damage(part);
    std::vector<std::string> expected = words;
    expected.push_back(part);
    const auto read = [&] {
      CacheReader(folder.path(), list_cache(folder.path())).read(begin, 400);
    };
    expect_error(read, expected);
  };
  damaged([](const std::string& part) { fs::resize_file(part, fs::file_size(part) - 100); },
          {"truncated", "may be deleted: its tokens are asked again"});
  damaged([](const std::string& part) { fs::resize_file(part, 0); }, {});
  // The bytes of four ids in a row, of four places, and of the tail's values.
  const auto bytes_of = [](auto... values) {
    const std::array all{values...};
    return std::string(reinterpret_cast<const char*>(all.data()), sizeof all);
  };
  for (const std::string& bytes : {bytes_of(int32_t{201}, int32_t{202}, int32_t{203}),
                                   bytes_of(int32_t{97}, int32_t{98}, int32_t{99}, int32_t{0}),
                                   bytes_of(-0.125F * 201, -0.125F * 202)}) {
    damaged([&](const std::string& part) { flip_byte(part, bytes); },
            {"is damaged", "may be deleted: its tokens are asked again"});
  }
  // Its place in the stream, too: it says that it begins 16 tokens later.
  damaged([&](const std::string& part) { flip_byte(part, bytes_of(int64_t{0}, int64_t{400})); },
          {"is damaged"}, 16);
}

TEST(TeacherCache, FactsThatAreNoneAreNamedHoweverDeep) {
  for (const std::string& text : {std::string("{"), std::string("[]"), std::string("{}"),
                                  "{\"a\":" + std::string(200000, '[')}) {
    const TestFolder folder;
    write_facts(folder.path(), facts(3, 1000, "fp32"));
    for (const auto& file : fs::directory_iterator(folder.path())) {
      std::ofstream(file.path()) << text;
    }
    expect_error([&] { list_cache(folder.path()); }, {"expected the facts of a teacher cache"});
  }
}

TEST(TeacherCache, WhatTheSystemRefusesIsNotDamage) {
  const TestFolder folder;
  write_facts(folder.path(), facts());
  fs::create_symlink(folder / "gone", folder / "part-00000000-00000.h5");  // a disk that is away
  expect_no_advice_to_delete(folder.path());
  fs::remove(folder / "part-00000000-00000.h5");
  fs::create_directory(folder / "part-00000000-00000.h5");
  expect_no_advice_to_delete(folder.path());
}

TEST(TeacherCache, APartOfAnotherCacheIsRefused) {
  const TestFolder one, other;
  write_facts(one.path(), facts());
  write_facts(other.path(), facts(4));
  write(one.path(), facts(), 0, {{0, 40}});
  const std::string part = only_part(one.path());
  fs::copy_file(part, other / fs::path(part).filename().string());
  expect_error([&] { list_cache(other.path()); }, {"belongs to another teacher cache"});
  expect_no_advice_to_delete(other.path());
  fs::remove(one / "teacher.json");
  expect_error([&] { list_cache(one.path()); }, {"teacher.json", "is missing"});
  std::ofstream(one / "teacher.json") << "{}";
  expect_error([&] { list_cache(one.path()); }, {"teacher.json", "something else"});
}

TEST(TeacherCache, DifferencesAreNamedOneByOne) {
  EXPECT_TRUE(facts_differences(facts(), facts()).empty());
  nlohmann::json there = facts(4);
  there["rows"]["sources"]["b"] = {{"share", 0.5}};
  there["teacher"] = {{"weights", "x"}};  // which we do not know yet
  EXPECT_EQ(facts_differences(there, facts()),
            (std::vector<std::string>{"topk: 4 there, 3 here",
                                      "rows.sources.b.share: 0.5 there, absent here"}));
  nlohmann::json here = facts();
  here["teacher"] = {{"weights", "y"}};
  EXPECT_EQ(facts_differences(facts(), here),
            (std::vector<std::string>{"teacher.weights: absent there, y here"}));
}

}  // namespace sala
