// Stores that change under a run, what a run remembers of them, and errors of the system.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "data/loader.h"
#include "data/source.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

void touch(const std::string& path) {
  fs::last_write_time(path, fs::last_write_time(path) + std::chrono::seconds(5));
}

// Opened, truncated and written again: the same inode, as `cp` over an existing file does.
void overwrite_in_place(const std::string& path, const std::string& other) {
  std::ifstream from(other, std::ios::binary);
  std::ofstream to(path, std::ios::binary | std::ios::trunc);
  to << from.rdbuf();
  to.close();
  touch(path);  // the clock of a file system may be coarser than this test
}

class ChangedStores : public ::testing::Test {
 protected:
  void SetUp() override {
    write_store(folder_ / "a.h5", numbered_documents(5, 50, 1));
    write_store(folder_ / "b.h5", numbered_documents(5, 50, 2));
  }
  StoreCatalog catalog(const std::string& path) const {
    StoreCatalog catalog(folder_ / "stores");
    catalog.add(StoreCatalog::record_line(path, TokenStore(path).facts()));
    catalog.save({path});
    return StoreCatalog(folder_ / "stores");
  }
  TestFolder folder_;
};

TEST_F(ChangedStores, OverwrittenInPlaceIsFoundAtTheNextRead) {
  const std::string path = folder_ / "a.h5";
  const Source source({"web", {path}, 1.0}, {});
  EXPECT_NO_THROW(source.read(0, 0, 1));  // and stays open
  overwrite_in_place(path, folder_ / "b.h5");
  for (int again = 0; again < 2; ++again) {
    expect_error([&] { source.read(0, 0, 1); }, {path, "overwritten", "restore"});
  }
}

TEST_F(ChangedStores, ReplacedOrCutShortIsFound) {
  const std::string path = folder_ / "a.h5";
  const Source source({"web", {path}, 1.0}, {}, catalog(path));
  fs::copy_file(folder_ / "b.h5", path, fs::copy_options::overwrite_existing);
  expect_error([&] { source.read(0, 0, 1); }, {path, "overwritten"});
  fs::resize_file(path, 900);
  expect_error([&] { source.read(0, 0, 1); }, {path, "overwritten", "truncated"});
  fs::remove(path);
  expect_error([&] { source.read(0, 0, 1); }, {path, "no such file"});
}

// A copy that came back, a touched file: other times, the same data. The run goes on.
TEST_F(ChangedStores, TheSameDataGoesOn) {
  const std::string path = folder_ / "a.h5";
  const Source source({"web", {path}, 1.0}, {});
  const auto ids = source.read(1, 0, 1);
  touch(path);
  EXPECT_EQ(source.read(1, 0, 1), ids);
  fs::copy_file(path, folder_ / "copy.h5");
  fs::rename(folder_ / "copy.h5", path);
  EXPECT_EQ(source.read(1, 0, 1), ids);
}

TEST_F(ChangedStores, TheLoaderNamesTheStore) {
  const std::string path = folder_ / "a.h5";
  LoaderConfig config;
  config.row_length = 16;
  config.rows_per_step = 1;
  config.stage = "train";
  Loader loader({{"web", {path}, 1.0}}, config);
  loader.next();
  overwrite_in_place(path, folder_ / "b.h5");
  expect_error(
      [&] {
        for (int s = 0; s < 10; ++s) loader.next();
      },
      {path, "overwritten"});
}

TEST_F(ChangedStores, TheRecordKnowsAFileUntilItChanges) {
  const std::string path = folder_ / "a.h5";
  const StoreCatalog known = catalog(path);
  ASSERT_NE(known.find(path), nullptr);
  EXPECT_EQ(known.find(path)->checksum, TokenStore(path).facts().checksum);
  EXPECT_EQ(known.find(folder_ / "b.h5"), nullptr);
  touch(path);
  EXPECT_EQ(known.find(path), nullptr);
  fs::remove(path);
  expect_error([&] { known.find(path); }, {path, "no such file"});
}

TEST_F(ChangedStores, APathOfAnyBytesIsKnown) {
  const std::string path = folder_ / "caf\xe9.h5", other = folder_ / "caf\xe8.h5";
  fs::rename(folder_ / "a.h5", path);
  fs::rename(folder_ / "b.h5", other);
  const StoreCatalog known = catalog(path);
  ASSERT_NE(known.find(path), nullptr);
  EXPECT_EQ(known.find(path)->checksum, TokenStore(path).facts().checksum);
  EXPECT_EQ(known.find(other), nullptr);
}

// Of thousands of stores each is looked at once in a start; what changes then shows when it is
// read.
TEST_F(ChangedStores, ASettledOneIsLookedAtWhenItIsRead) {
  const std::string path = folder_ / "a.h5", elsewhere = folder_ / "moved.h5";
  StoreCatalog known = catalog(path);
  static_cast<void>(Source({"web", {path}, 1.0}, {}, known));  // keeps the documents' offsets
  known.settle(path, file_identity(path));
  fs::rename(path, elsewhere);  // the catalog asks nobody
  const Source source({"web", {path}, 1.0}, {}, known);
  EXPECT_EQ(source.num_documents(), 5);
  expect_error([&] { source.read(0, 0, 1); }, {path, "no such file"});
  fs::rename(elsewhere, path);
  EXPECT_EQ(source.read(1, 0, 1).size(), 1u);
  overwrite_in_place(path, folder_ / "b.h5");
  EXPECT_NE(known.find(path), nullptr);
  expect_error([&] { source.read(0, 0, 1); }, {path, "overwritten", "restore"});
}

// A bit in the record or in the offsets may flip like any other: never other documents for it.
TEST_F(ChangedStores, DamagedRecordsAreReadAgainOrNamed) {
  const std::string path = folder_ / "a.h5";
  const Source source({"web", {path}, 1.0}, {}, catalog(path));
  for (const std::string& name :
       {std::string("verified.jsonl"), source.fingerprint() + ".offsets"}) {
    const std::string file = folder_ / ("stores/" + name);
    std::ifstream in(file, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    ASSERT_FALSE(bytes.empty());
    for (size_t at = 0; at < bytes.size(); at += 5) {
      std::string spoilt = bytes;
      spoilt[at] = static_cast<char>(spoilt[at] ^ (1 << (at % 8)));
      std::ofstream(file, std::ios::binary) << spoilt;
      try {
        const Source again({"web", {path}, 1.0}, {}, StoreCatalog(folder_ / "stores"));
        for (std::int64_t d = 0; d < 5; ++d) {
          ASSERT_EQ(again.document_length(d), source.document_length(d)) << name << " " << at;
        }
      } catch (const std::runtime_error& error) {
        EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      }
    }
    std::ofstream(file, std::ios::binary) << bytes;
  }
}

// What the system refuses is said in its words, and the file is not blamed.
TEST_F(ChangedStores, ErrorsOfTheSystemAreTold) {
  const std::string path = folder_ / "a.h5";
  const auto message = [&](const std::string& of) {
    try {
      TokenStore store(of);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlimit none{0, limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  const std::string too_many = message(path);
  setrlimit(RLIMIT_NOFILE, &limit);
  EXPECT_NE(too_many.find("Too many open files; raise the limit"), std::string::npos) << too_many;

  EXPECT_NE(message(folder_ / "none/a.h5").find("no such file; check the path"), std::string::npos);
  EXPECT_NE(message(folder_.path()).find("folder"), std::string::npos);
  ASSERT_EQ(mkfifo((folder_ / "pipe.h5").c_str(), 0600), 0);
  EXPECT_NE(message(folder_ / "pipe.h5").find("pipe"), std::string::npos);

  const auto as_nobody = [&] {  // root may read everything
    const bool was_root = geteuid() == 0;
    EXPECT_TRUE(!was_root || seteuid(65534) == 0);
    const std::string text = message(path);
    EXPECT_TRUE(!was_root || seteuid(0) == 0);
    return text;
  };
  fs::permissions(path, fs::perms::none);
  const std::string denied = as_nobody();
  fs::permissions(path, fs::perms::all);
  fs::permissions(folder_.path(), fs::perms::none);
  const std::string hidden = as_nobody();
  fs::permissions(folder_.path(), fs::perms::all);
  EXPECT_NE(denied.find("Permission denied; check the permissions"), std::string::npos) << denied;
  EXPECT_NE(hidden.find("Permission denied; check"), std::string::npos) << hidden;
  for (const std::string& text : {too_many, denied, hidden}) {
    EXPECT_EQ(text.find("damaged"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace sala
