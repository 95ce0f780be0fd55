// The door to HDF5, the atomic writer and the hashes: round trips, slabs, and one clear line per
// error.
#include "data/files/hdf5_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include <csignal>
#include <fstream>
#include <numeric>
#include <thread>

#include "data/files/atomic_file.h"
#include "data/files/hash.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

TEST(Hdf5File, EveryElementTypeComesBackEqual) {
  const TestFolder folder;
  const std::vector<std::uint8_t> bytes = {1, 0, 255};
  const std::vector<std::uint16_t> shorts = {0x3f80, 0, 65535};
  const std::vector<std::int16_t> signed_shorts = {-32768, 32767};
  const std::vector<std::uint32_t> words = {4000000000u};
  const std::vector<std::int32_t> ints = {-1, 7};
  const std::vector<std::int64_t> longs = {-(std::int64_t{1} << 60), 3};
  const std::vector<float> floats = {1.5f, -0.0f};
  const std::vector<double> doubles = {1e300};
  {
    Hdf5File file = Hdf5File::create(folder / "all.h5");
    file.write_all("u8", bytes);
    file.write_all("u16", shorts, 2);
    file.write_all("i16", signed_shorts);
    file.write_all("group/u32", words);
    file.write_all("group/deep/i32", ints);
    file.write_all("i64", longs);
    file.write_all("f32", floats);
    file.write_all("f64", doubles);
    file.create_dataset("bf16", Hdf5Type::kBF16, {3});
    file.write("bf16", 0, 3, shorts.data());
    file.write_all("empty", std::vector<float>{});
    file.commit();
  }
  const Hdf5File file = Hdf5File::open(folder / "all.h5");
  EXPECT_EQ(file.read_all<std::uint8_t>("u8"), bytes);
  EXPECT_EQ(file.read_all<std::uint16_t>("u16"), shorts);
  EXPECT_EQ(file.read_all<std::int16_t>("i16"), signed_shorts);
  EXPECT_EQ(file.read_all<std::uint32_t>("group/u32"), words);
  EXPECT_EQ(file.read_all<std::int32_t>("group/deep/i32"), ints);
  EXPECT_EQ(file.read_all<std::int64_t>("i64"), longs);
  EXPECT_EQ(file.read_all<float>("f32"), floats);
  EXPECT_EQ(file.read_all<double>("f64"), doubles);
  EXPECT_EQ(file.read_all<std::uint16_t>("bf16"), shorts);
  EXPECT_EQ(file.type("bf16"), Hdf5Type::kBF16);
  EXPECT_EQ(file.type("u16"), Hdf5Type::kU16);
  EXPECT_TRUE(file.read_all<float>("empty").empty());
  const std::vector<std::string> names = {"bf16",      "empty", "f32", "f64", "group/deep/i32",
                                          "group/u32", "i16",   "i64", "u16", "u8"};
  EXPECT_EQ(file.list_datasets(), names);
  EXPECT_TRUE(file.exists("group/deep/i32"));
  EXPECT_FALSE(file.exists("group/shallow/i32"));
}

TEST(Hdf5File, RowsOfManyDimensionsInAnyOrder) {
  const TestFolder folder;
  const std::vector<std::int64_t> shape = {5, 3, 7};
  std::vector<float> values(5 * 3 * 7);
  std::iota(values.begin(), values.end(), 0.5f);
  {
    Hdf5File file = Hdf5File::create(folder / "logits.h5");
    file.create_dataset("logits", Hdf5Type::kF32, shape);
    file.write("logits", 2, 3, values.data() + 2 * 21);
    file.write("logits", 0, 2, values.data());
    file.commit();
  }
  const Hdf5File file = Hdf5File::open(folder / "logits.h5");
  EXPECT_EQ(file.shape("logits"), shape);
  EXPECT_EQ(file.read_all<float>("logits"), values);
  std::vector<float> row(21);
  file.read("logits", 4, 1, row.data());
  EXPECT_EQ(row, std::vector<float>(values.end() - 21, values.end()));
}

TEST(Hdf5File, CompressedRowsComeBackEqualFromASmallFile) {
  const TestFolder folder;
  const std::string path = folder / "small.h5";
  const std::vector<std::int64_t> shape = {3, 500, 20};
  std::vector<std::int16_t> values(3 * 500 * 20);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::int16_t>(i % 20 + i / 999);
  Hdf5File writer = Hdf5File::create(path);
  writer.create_compressed_dataset("x", Hdf5Type::kI16, shape, {1, 128, 9999});
  writer.write("x", 0, 3, values.data());
  writer.commit();
  EXPECT_LT(std::filesystem::file_size(path), values.size());  // of 2 bytes each
  const Hdf5File file = Hdf5File::open(path);
  EXPECT_EQ(file.shape("x"), shape);
  EXPECT_EQ(file.read_all<std::int16_t>("x"), values);
  std::vector<std::int16_t> row(500 * 20);
  file.read("x", 2, 1, row.data());
  EXPECT_TRUE(std::equal(row.begin(), row.end(), values.end() - 500 * 20));
}

TEST(Hdf5File, MoreThanOneSlabComesBackEqual) {
  const TestFolder folder;
  std::vector<std::int64_t> values(2 * kSlabBytes / 8 + 13);
  std::iota(values.begin(), values.end(), -5);
  Hdf5File writer = Hdf5File::create(folder / "large.h5");
  writer.write_all("x", values, 1000);
  writer.commit();
  EXPECT_EQ(Hdf5File::open(folder / "large.h5").read_all<std::int64_t>("x"), values);
}

TEST(Hdf5File, AttributesComeBackEqualAndReplace) {
  const TestFolder folder;
  Hdf5File writer = Hdf5File::create(folder / "a.h5");
  writer.set_attribute("count", std::int64_t{1});
  writer.set_attribute("count", std::int64_t{1} << 40);
  writer.set_attribute("share", 0.25);
  writer.set_attribute("name", std::string("b\u00fccher"));
  writer.set_attribute("nothing", std::string());
  writer.commit();
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_EQ(file.attribute_int("count"), std::int64_t{1} << 40);
  EXPECT_EQ(file.attribute_double("share"), 0.25);
  EXPECT_EQ(file.attribute_string("name"), "b\u00fccher");
  EXPECT_EQ(file.attribute_string("nothing"), "");
  EXPECT_FALSE(file.has_attribute("other"));
  expect_error([&] { file.attribute_int("name"); }, {"a.h5", "`name`", "integer"});
  expect_error([&] { file.attribute_string("other"); }, {"a.h5", "`other`", "missing"});
}

TEST(Hdf5File, WithoutCommitNothingAppearsAndTheOldFileStays) {
  const TestFolder folder;
  Hdf5File first = Hdf5File::create(folder / "x.h5");
  first.write_all("v", std::vector<float>{1});
  first.commit();
  {
    Hdf5File second = Hdf5File::create(folder / "x.h5");
    second.write_all("v", std::vector<float>{2});
  }
  EXPECT_EQ(Hdf5File::open(folder / "x.h5").read_all<float>("v"), std::vector<float>{1});
  EXPECT_FALSE(std::filesystem::exists(folder / "x.h5.tmp"));
}

TEST(Hdf5File, EveryErrorNamesFileDatasetAndOffset) {
  const TestFolder folder;
  const std::string path = folder / "x.h5";
  Hdf5File writer = Hdf5File::create(path);
  writer.write_all("v", std::vector<float>(10, 1.0f));
  writer.commit();
  Hdf5File file = Hdf5File::open(path);
  std::vector<float> out(20);
  std::vector<std::int64_t> wrong(20);
  expect_error([&] { file.read("v", 5, 6, out.data()); }, {path, "`v`", "10 rows", "5..11"});
  expect_error([&] { file.read("v", 0, 2, wrong.data()); }, {path, "`v`", "i64", "f32"});
  expect_error([&] { file.read("w", 0, 2, out.data()); }, {path, "`w`", "missing"});
  expect_error([&] { file.write("v", 0, 2, out.data()); }, {path, "reading"});
  expect_error([&] { Hdf5File::open(folder / "y.h5"); }, {"y.h5", "no such file"});
  expect_error([&] { Hdf5File::open(folder.path()); }, {"folder"});
  expect_error([&] { Hdf5File::create(folder / "none/y.h5"); }, {"none/y.h5", "No such file"});
  std::ofstream(folder / "text.h5") << "not HDF5 at all";
  expect_error([&] { Hdf5File::open(folder / "text.h5"); }, {"text.h5", "damaged"});
  file.close();
  expect_error([&] { file.read("v", 0, 2, out.data()); }, {path, "closed"});
}

TEST(Hdf5File, TruncatedFileIsNamed) {
  const TestFolder folder;
  const std::string path = folder / "x.h5";
  Hdf5File writer = Hdf5File::create(path);
  writer.write_all("v", std::vector<double>(10000, 1.0));
  writer.commit();
  const auto size = std::filesystem::file_size(path);
  for (const auto kept : {size - 1, size / 2, size / 50, std::uintmax_t{0}}) {
    std::filesystem::resize_file(path, kept);
    expect_error([&] { Hdf5File::open(path).read_all<double>("v"); },
                 {path, "truncated or damaged"});
  }
}

// A limit on file size stands for a full disk. The error is clear, the old file stays, no rest lies
// about, and the library goes on working.
TEST(Hdf5File, AFullDiskOrALimitIsNamedAndNothingIsLost) {
#ifdef __SANITIZE_ADDRESS__
  const __lsan::ScopedDisabler quiet;  // HDF5 itself loses a buffer when a close fails
#endif
  const TestFolder folder;
  const std::string path = folder / "x.h5";
  Hdf5File first = Hdf5File::create(path);
  first.write_all("v", std::vector<float>{1});
  first.commit();
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{std::uint64_t{1} << 20, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (const std::int64_t chunk : {0, 4096}) {
    expect_error(
        [&] {
          Hdf5File second = Hdf5File::create(path);
          second.write_all("v", std::vector<float>(1 << 20, 2.0f), chunk);
          second.commit();
        },
        {path, "File too large", "ulimit -f"});
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  EXPECT_EQ(Hdf5File::open(path).read_all<float>("v"), std::vector<float>{1});
  Hdf5File third = Hdf5File::create(path);
  third.write_all("v", std::vector<float>{3});
  third.commit();
  EXPECT_EQ(Hdf5File::open(path).read_all<float>("v"), std::vector<float>{3});
}

// A thread that writes much must not keep a reader out, and both must see right values.
TEST(Hdf5File, ReaderAndWriterThreadsTakeTurns) {
  const TestFolder folder;
  Hdf5File source = Hdf5File::create(folder / "data.h5");
  std::vector<std::int32_t> values(100000);
  std::iota(values.begin(), values.end(), 0);
  source.write_all("v", values, 4096);
  source.commit();
  const std::vector<std::uint8_t> block(3 * kSlabBytes, 9);
  std::thread writer([&] {
    Hdf5File file = Hdf5File::create(folder / "checkpoint.h5");
    for (int i = 0; i < 4; ++i) file.write_all("block" + std::to_string(i), block);
    file.commit();
  });
  const Hdf5File file = Hdf5File::open(folder / "data.h5");
  for (std::int64_t i = 0; i < 1000; ++i) {
    std::int32_t value = -1;
    file.read("v", i * 97, 1, &value);
    ASSERT_EQ(value, i * 97);
  }
  writer.join();
  EXPECT_EQ(Hdf5File::open(folder / "checkpoint.h5").read_all<std::uint8_t>("block3"), block);
}

TEST(AtomicFile, ReplacesWholeOrNotAtAll) {
  const TestFolder folder;
  const std::string path = folder / "manifest.json";
  write_file_atomically(path, "one");
  write_file_atomically(path, "two");
  EXPECT_EQ(read_text_file(path), "two");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  expect_error([&] { write_file_atomically(folder / "none/x", "text"); }, {"none/x", "folder"});
  expect_error([&] { read_text_file(folder / "none"); }, {"none", "No such file"});
}

// Values from the reference implementation's Python package.
TEST(Hash, EqualsKnownValuesWholeAndStreamed) {
  EXPECT_EQ(xxh3_64_hex("", 0), "2d06800538d394c2");
  EXPECT_EQ(xxh3_128_hex("", 0), "99aa06d3014798d86001c324468d497f");
  std::string text;
  for (int i = 0; i < 1000; ++i) text += std::to_string(i);
  Xxh3Stream narrow(Xxh3Width::k64), wide(Xxh3Width::k128);
  for (size_t i = 0; i < text.size(); i += 77) {
    const std::string part = text.substr(i, 77);
    narrow.update(part.data(), part.size());
    wide.update(part.data(), part.size());
  }
  EXPECT_EQ(narrow.hex(), xxh3_64_hex(text.data(), text.size()));
  EXPECT_EQ(wide.hex(), xxh3_128_hex(text.data(), text.size()));
}

}  // namespace
}  // namespace sala
