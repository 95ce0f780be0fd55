// safetensors files: what is written is read again, is laid out as the reference library lays it
// out, and anything broken is refused with the offset.
#include "data/files/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include "data/files/atomic_file.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  // A file of the given header and number of zero bytes of data.
  std::string file(const std::string& header, size_t num_bytes) {
    std::string text(8, '\0');
    const uint64_t size = header.size();
    std::memcpy(text.data(), &size, sizeof size);
    return write(text + header + std::string(num_bytes, '\0'));
  }
  std::string write(const std::string& bytes) {
    const std::string path = folder_ + "/case.safetensors";
    write_file_atomically(path, bytes);
    return path;
  }
  static std::string error_of(const std::string& path) {
    try {
      SafetensorsReader reader(path);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "no error";
  }

  const std::string folder_ =
      fs::temp_directory_path() / ("safetensors_test_" + std::to_string(::getpid()));
};

TEST_F(Safetensors, WhatIsWrittenIsRead) {
  const at::Tensor a = at::randn({3, 5}), b = at::arange(7, at::kLong);
  const std::string path = folder_ + "/x.safetensors";
  write_safetensors(
      path, {{"a", at::kFloat, {3, 5}}, {"b", at::kLong, {7}}, {"a16", at::kBFloat16, {3, 5}}},
      [&](const std::string& name) { return name == "b" ? b : a; });
  EXPECT_FALSE(fs::exists(path + ".tmp"));
  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.entries().size(), 3u);
  EXPECT_TRUE(at::equal(reader.tensor("a"), a));
  EXPECT_TRUE(at::equal(reader.tensor("b"), b));
  EXPECT_TRUE(at::equal(reader.tensor("a16"), a.to(at::kBFloat16)));
  EXPECT_THROW(reader.tensor("c"), std::runtime_error);
}

TEST_F(Safetensors, LayoutIsThatOfTheReferenceLibrary) {
  const std::string path = folder_ + "/x.safetensors";
  write_safetensors(path,
                    {{"b", at::kBFloat16, {2}}, {"z", at::kFloat, {1}}, {"a", at::kBFloat16, {1}}},
                    [&](const std::string& name) { return at::ones({name == "b" ? 2 : 1}); });
  const std::string text = read_text_file(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, text.data(), 8);
  EXPECT_EQ(header_bytes % 8, 0u);
  std::string header = text.substr(8, header_bytes);
  header.erase(header.find_last_not_of(' ') + 1);
  EXPECT_EQ(header,
            "{\"__metadata__\":{\"format\":\"pt\"},"
            "\"z\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
            "\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[4,6]},"
            "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[6,10]}}");
  EXPECT_EQ(text.size(), 8 + header_bytes + 10);
}

TEST_F(Safetensors, TensorsOutliveTheReaderAndUnalignedDataIsRead) {
  at::Tensor t;
  {
    std::string text =
        read_text_file(file("{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8));
    const float values[2] = {1.5f, -2.0f};
    std::memcpy(text.data() + text.size() - 8, values, 8);
    ASSERT_NE((text.size() - 8) % 4, 0u);
    t = SafetensorsReader(write(text)).tensor("x");
  }
  EXPECT_EQ(t[0].item<float>(), 1.5f);
  EXPECT_EQ(t[1].item<float>(), -2.0f);
}

TEST_F(Safetensors, AFailedWriteLeavesNothing) {
  const std::string path = folder_ + "/x.safetensors";
  const auto wrong_shape = [](const std::string&) { return at::ones({3}); };
  EXPECT_THROW(write_safetensors(path, {{"a", at::kFloat, {2}}}, wrong_shape), c10::Error);
  EXPECT_TRUE(fs::is_empty(folder_));
}

std::string entry(const char* name, int begin, int end, const char* dtype = "F32", int size = 2) {
  return "\"" + std::string(name) + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" +
         std::to_string(size) + "],\"data_offsets\":[" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

TEST_F(Safetensors, BrokenFilesAreRefusedWithTheOffset) {
  const auto expect = [](const std::string& path, const char* part) {
    const std::string error = error_of(path);
    EXPECT_NE(error.find(part), error.npos) << error;
    EXPECT_EQ(error.find(path + ": "), 0u) << error;
    EXPECT_EQ(error.find('\n'), error.npos) << error;
  };
  expect(write("short"), "at byte 5: the file ends");
  expect(write(""), "at byte 0: the file ends");
  expect(write(std::string("\xff\0\0\0\0\0\0\0{}", 10)),
         "a header of 255 bytes does not fit the 10");
  expect(write(std::string(8, '\xff') + "{}"), "does not fit");
  expect(file("{\"a\": tru", 0), "is not valid JSON");
  expect(file("[]", 0), "expected a JSON object");
  expect(file("{" + entry("a", 0, 8) + "}", 5), "(truncated)");
  expect(file("{" + entry("a", 0, 8) + "}", 9), "bytes follow the last tensor");
  expect(file("{" + entry("a", 0, 8) + "," + entry("b", 4, 12) + "}", 12), "b overlaps tensor a");
  expect(file("{" + entry("a", 0, 8) + "," + entry("b", 12, 20) + "}", 20),
         "b leaves a gap after tensor a");
  expect(file("{" + entry("a", 0, 12) + "}", 12), "do not fit its dtype and shape (8 bytes)");
  expect(file("{" + entry("a", 8, 0) + "}", 8), "do not fit");
  expect(file("{" + entry("a", 0, 8, "F33") + "}", 8), "unknown dtype F33");
  expect(file("{" + entry("a", 0, 8) + "," + entry("a", 8, 16) + "}", 16), "names tensor a twice");
  expect(file("{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8),
         "expected dtype, shape");
  expect(
      file("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,8],\"data_offsets\":[0,8]}}",
           8),
      "too many");
  expect(file("{\"a\":3}", 0), "expected dtype, shape");
}

TEST_F(Safetensors, AFileThatChangesWhileItIsOpenIsNamed) {
  const int64_t size = 1 << 20;  // cut by many pages
  const std::string header = "{" + entry("a", 0, 4 * size, "F32", size) + "}";
  const std::vector<std::function<void(const std::string&)>> changes = {
      [](const std::string& path) { fs::resize_file(path, 5000); },
      [](const std::string& path) { fs::resize_file(path, fs::file_size(path) + 1); },
      [](const std::string& path) { write_file_atomically(path, std::string(100, 'x')); },
      [](const std::string& path) { fs::remove(path); }};
  for (const auto& change : changes) {
    const std::string path = file(header, 4 * size);
    const SafetensorsReader reader(path);
    const SafetensorsReader::Open open(reader);
    at::Tensor buffer;
    EXPECT_EQ(reader.tensor("a").sum().item<float>(), 0);
    EXPECT_EQ(open.tensor("a", buffer).sum().item<float>(), 0);
    change(path);
    const std::function<void()> reads[] = {[&] { reader.tensor("a"); },
                                           [&] { open.tensor("a", buffer); },
                                           [&] { SafetensorsReader::Open again(reader); }};
    for (const auto& read : reads) {
      try {
        read();
        ADD_FAILURE() << "no error";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(std::string(error.what()).find(path + ": "), 0u) << error.what();
      }
    }
  }
}

TEST_F(Safetensors, AnOpenFileGivesItsTensorsInOneBuffer) {
  const std::string path = folder_ + "/x.safetensors";
  const at::Tensor small = at::randn({3}), large = at::randn({50, 20});
  write_safetensors(path, {{"small", at::kFloat, {3}}, {"large", at::kFloat, {50, 20}}},
                    [&](const std::string& name) { return name == "small" ? small : large; });
  const SafetensorsReader reader(path);
  const SafetensorsReader::Open open(reader);
  at::Tensor buffer;
  EXPECT_TRUE(at::equal(open.tensor("small", buffer), small));
  EXPECT_TRUE(at::equal(open.tensor("large", buffer), large));
  const void* where = buffer.data_ptr();
  EXPECT_TRUE(at::equal(open.tensor("small", buffer), small));
  EXPECT_EQ(buffer.data_ptr(), where);
  EXPECT_THROW(open.tensor("none", buffer), std::runtime_error);
}

TEST_F(Safetensors, DtypesWeCannotReadAreListedButNotReturned) {
  const SafetensorsReader reader(file("{" + entry("a", 0, 2, "F8_E4M3") + "}", 2));
  EXPECT_EQ(reader.entries().at("a").dtype, "F8_E4M3");
  EXPECT_FALSE(SafetensorsReader::can_read("F8_E4M3"));
  EXPECT_THROW(reader.tensor("a"), std::runtime_error);
}

}  // namespace
}  // namespace sala
