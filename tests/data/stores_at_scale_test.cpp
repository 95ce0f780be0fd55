// Many stores and many documents: how many files are open, how many bytes are held, and that a
// start opens nothing that it knows. Growth is measured, not time.
#include <gtest/gtest.h>
#include <malloc.h>

#include <filesystem>
#include <fstream>

#include "data/eval_rows.h"
#include "data/loader.h"
#include "data/source.h"
#include "tests/data/file_limit.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

std::int64_t num_open_files() {
  std::int64_t count = 0;
  for ([[maybe_unused]] const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

// `count` files with the same store in them. No links: HDF5 would open one file for all of them.
std::vector<std::string> many_stores(const TestFolder& folder, int count) {
  write_store(folder / "one.h5", numbered_documents(3, 40, 9));
  std::vector<std::string> files;
  for (int i = 0; i < count; ++i) {
    files.push_back(folder / ("s-" + std::to_string(i) + ".h5"));
    std::filesystem::copy_file(folder / "one.h5", files.back());
  }
  return files;
}

// What verify_stores does at the first start of a run.
StoreCatalog verified(const TestFolder& folder, const std::vector<std::string>& files) {
  StoreCatalog catalog(folder / "stores");
  for (const std::string& file : files) {
    const TokenStore store(file);
    store.verify_checksum();
    catalog.add(StoreCatalog::record_line(file, store.facts()));
  }
  catalog.save(files);
  return catalog;
}

TEST(StoresAtScale, MoreStoresThanFilesMayBeOpen) {
  const TestFolder folder;
  const FileLimit limit(256);
  const auto files = many_stores(folder, 300);
  LoaderConfig config;
  config.row_length = 50;
  config.rows_per_step = 64;
  config.stage = "train";
  Loader loader({{"web", files, 1.0}}, config);
  for (int s = 0; s < 20; ++s) loader.next();
  EXPECT_LT(num_open_files(), 100);
}

// The limit may be used up by others at any time: stores give way.
TEST(StoresAtScale, StoresAreClosedWhenTheSystemHasNoFileLeft) {
  const TestFolder folder;
  const auto files = many_stores(folder, 12);
  const Source source({"web", files, 1.0}, {});
  for (std::int64_t d = 0; d < source.num_documents(); d += 3) source.read(d, 0, 1);
  std::vector<std::ifstream> others;
  const FileLimit limit(static_cast<rlim_t>(num_open_files()) + 2);
  while (std::ifstream("/dev/null").is_open() && others.size() < 100) {
    others.emplace_back("/dev/null");
  }
  for (std::int64_t d = 0; d < source.num_documents(); ++d) {
    EXPECT_NO_THROW(source.read(d, 0, 1)) << d;
  }
}

TEST(StoresAtScale, ASourceThatIsKnownOpensNoStore) {
  const TestFolder folder;
  const auto files = many_stores(folder, 20);
  verified(folder, files);
  const StoreCatalog catalog(folder / "stores");
  const Source first({"web", files, 1.0}, {}, catalog);  // writes the offsets
  const auto open = std::make_shared<OpenStores>();
  const Source source({"web", files, 1.0}, {}, catalog, open);
  EXPECT_EQ(source.num_documents(), 60);
  EXPECT_EQ(source.document_length(33), first.document_length(33));
  EXPECT_EQ(plan_eval_rows(source, 10, 5, 1).size(), 5u);
  EXPECT_EQ(open->num_open(), 0u);
  EXPECT_EQ(source.read(33, 0, 1), first.read(33, 0, 1));
  EXPECT_EQ(open->num_open(), 1u);
  EXPECT_EQ(source.fingerprint(), first.fingerprint());
}

#ifndef __SANITIZE_ADDRESS__  // mallinfo counts another allocator's bytes there
std::int64_t held_bytes() { return static_cast<std::int64_t>(mallinfo2().uordblks); }

// 50,000 documents of two tokens, then 200,000: what a rank holds must not grow with them.
TEST(StoresAtScale, DocumentsTakeNoMemoryOfTheProcess) {
  const TestFolder folder;
  std::int64_t held[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    TestStore store;
    store.documents.assign(i == 0 ? 50'000 : 200'000, {1, 0});
    const std::string file = folder / (std::to_string(i) + ".h5");
    write_store(file, store);
    const StoreCatalog catalog = verified(folder, {file});
    { const Source written({"web", {file}, 1.0}, {}, catalog); }
    store = {};
    malloc_trim(0);
    const std::int64_t before = held_bytes();
    LoaderConfig config;
    config.row_length = 64;
    config.rows_per_step = 4;
    config.stage = "train";
    config.catalog = std::make_shared<StoreCatalog>(catalog);
    Loader loader({{"web", {file}, 1.0}}, config);
    for (int s = 0; s < 5; ++s) loader.next();
    held[i] = held_bytes() - before;
  }
  EXPECT_LT(held[1] - held[0], 150'000 / 2) << held[0] << " and " << held[1] << " bytes";
}

// A store that is known but not open is its facts; an open one is what HDF5 holds for a file.
TEST(StoresAtScale, AStoreTakesLessThanAKilobyteAndAnOpenOneWhatItsNumberIsChosenBy) {
  const TestFolder folder;
  const auto files = many_stores(folder, 400);
  const StoreCatalog catalog = verified(folder, files);
  { const Source written({"web", files, 1.0}, {}, catalog); }
  malloc_trim(0);
  const std::int64_t before = held_bytes();
  const auto open = std::make_shared<OpenStores>();
  const Source source({"web", files, 1.0}, {}, catalog, open);
  const std::int64_t known = held_bytes() - before;
  EXPECT_LT(known, 400 * 1024);
  for (std::int64_t d = 0; d < source.num_documents(); ++d) source.read(d, 0, 1);
  EXPECT_EQ(open->num_open(), std::min<size_t>(open->capacity(), 400));
  const std::int64_t of_open = held_bytes() - before - known;
  EXPECT_LT(of_open, static_cast<std::int64_t>(open->num_open()) * OpenStores::kStoreBytes);
}
#endif

}  // namespace
}  // namespace sala
