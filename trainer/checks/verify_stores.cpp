// Sharing out the files, gathering what was found.
#include "trainer/checks/verify_stores.h"

#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "data/files/hash.h"
#include "data/source.h"
#include "trainer/ranks/stop_signals.h"
#include "trainer/recipe/amount_text.h"

namespace sala {

namespace {

class Verification {
 public:
  // `remembers`: in RUN/stores/.
  Verification(Run& run, std::set<std::string> sources, bool remembers)
      : run_(run),
        sources_(std::move(sources)),
        remembers_(remembers),
        catalog_(std::make_shared<StoreCatalog>(
            remembers ? StoreCatalog(run.folder + "/stores")
                      : StoreCatalog::copy_of(run.folder + "/stores"))) {}

  bool operator()(bool again) {
    run_.world.together("", [&] {
      for (const std::string& name : sources_) {
        const SourceOptions& source = run_.recipe.data.sources.at(name);
        for (const std::string& path : expand_globs(source.files)) {
          paths_.try_emplace(path, file_identity(path));
        }
      }
      for (const auto& [path, file] : paths_) {
        if (again || !catalog_->find(path, file)) add_unknown(path, file);
      }
    });
    tell();
    std::string lines;
    const std::vector<std::string> mine = my_share();
    try {
      run_.world.together("", [&] { verify(mine, lines); });
    } catch (const SharedError&) {  // thrown on all ranks: what was right need not be read again
      record(run_.world.gather(lines));
      throw;
    }
    const bool stopped = run_.world.any(stop_requested());
    run_.world.together("", [&] { record(run_.world.gather(lines)); });
    if (stopped) return false;
    run_.stores = catalog_;
    compare_ranks();
    if (remembers_) write_offsets();
    return true;
  }

 private:
  void add_unknown(const std::string& path, const FileIdentity& file) {
    unknown_[fmt::format("{} {} {} {}", xxh3_128_hex(path.data(), path.size()), file.num_bytes,
                         file.changed_ns, file.inode)] = path;
    unknown_bytes_ += static_cast<double>(file.num_bytes);
  }

  void tell() {
    if (unknown_.empty()) return;
    run_.metrics.note(
        fmt::format("token stores: {} of {} are read as a whole ({}) to compare their checksums",
                    unknown_.size(), paths_.size(), bytes_text(unknown_bytes_)));
  }

  // Of the files that somebody does not know, those that this rank reads. Every rank computes the
  // same reader for a file, one of those that see it.
  std::vector<std::string> my_share() {
    std::string list;
    for (const auto& [file, path] : unknown_) list += file + "\n";
    const auto hashes = run_.world.gather(xxh3_64_hex(list.data(), list.size()));
    // Nearly always all ranks see the same files: then the lists themselves need not travel.
    const bool same = std::set(hashes.begin(), hashes.end()).size() == 1;
    std::map<std::string, std::vector<int>> seen_by;
    const auto lists = same ? std::vector{list} : run_.world.gather(list);
    for (size_t r = 0; r < lists.size(); ++r) {
      std::istringstream lines(lists[r]);
      for (std::string file; std::getline(lines, file);) {
        seen_by[file].push_back(static_cast<int>(r));
      }
    }
    std::vector<std::string> mine;
    int turn = 0;
    for (const auto& [file, ranks] : seen_by) {
      const int reader = same ? turn % run_.world.size() : ranks[turn % ranks.size()];
      ++turn;
      if (reader == run_.world.rank()) mine.push_back(unknown_.at(file));
    }
    return mine;
  }

  // Adds a line of the record for each store that is right.
  void verify(const std::vector<std::string>& paths, std::string& lines) {
    for (const std::string& path : paths) {
      if (stop_requested()) break;
      const TokenStore store(path, run_.tokenizer);
      store.verify_checksum();
      static_cast<void>(store.read_offsets());
      if (!store.is_unchanged()) {
        throw std::runtime_error(path + ": is being written to; start the run when it is finished");
      }
      lines += StoreCatalog::record_line(path, store.facts()) + "\n";
    }
  }

  void record(const std::vector<std::string>& of_ranks) {
    bool changed = false;
    for (const std::string& lines : of_ranks) {
      std::istringstream stream(lines);
      for (std::string line; std::getline(stream, line);) {
        catalog_->add(line);
        changed = true;
      }
    }
    if (!changed || !remembers_ || run_.world.rank() != 0) return;
    std::vector<std::string> paths;
    for (const auto& [path, file] : paths_) paths.push_back(path);
    catalog_->save(paths);
  }

  // Copies on several nodes must hold the same data, or ranks would train on different rows.
  void compare_ranks() {
    std::string mine;
    run_.world.together("", [&] {
      for (const auto& [path, file] : paths_) {
        const StoreFacts* facts = catalog_->find(path, file);
        if (!facts) throw std::runtime_error(path + ": changed while the run starts");
        check_tokenizer(path, *facts, run_.tokenizer);
        catalog_->settle(path, file);
        mine += facts->checksum;
      }
    });
    const std::string hash = xxh3_64_hex(mine.data(), mine.size());
    if (!run_.world.any(run_.world.broadcast(hash) != hash)) return;
    const std::vector<std::string> all = run_.world.gather(mine);
    for (size_t r = 1; r < all.size(); ++r) {
      if (all[r].size() != all[0].size()) {
        throw SharedError(fmt::format("rank {} finds other token stores than rank 0", r));
      }
      const auto differs = std::mismatch(all[0].begin(), all[0].end(), all[r].begin()).first;
      if (differs == all[0].end()) continue;
      const auto place = (differs - all[0].begin()) / static_cast<std::ptrdiff_t>(kHashDigits);
      throw SharedError(fmt::format("{}: holds other data on rank {} than on rank 0; copy it anew",
                                    std::next(paths_.begin(), place)->first, r));
    }
  }

  // A source writes the file of its documents' offsets where it is missing: one rank does, and
  // removes those of stores that the recipe had before, and of a start that was killed.
  void write_offsets() {
    run_.world.together("", [&] {
      if (run_.world.rank() != 0) return;
      const std::string folder = run_.folder + "/stores";
      std::filesystem::create_directories(folder);
      std::set<std::string> used;
      for (const auto& [name, source] : run_.recipe.data.sources) {
        const Source written({name, expand_globs(source.files), 1.0}, run_.tokenizer, *run_.stores);
        used.insert(run_.stores->offsets_path(written.fingerprint()));
      }
      for (const auto& file : std::filesystem::directory_iterator(folder)) {
        const std::string path = file.path().string();
        const bool ours = path.ends_with(".offsets") || path.ends_with(".tmp");
        if (ours && !used.count(path)) std::filesystem::remove(file);
      }
    });
  }

  static constexpr size_t kHashDigits = 16;

  Run& run_;
  const std::set<std::string> sources_;
  const bool remembers_;
  std::shared_ptr<StoreCatalog> catalog_;
  std::map<std::string, FileIdentity> paths_;   // of all stores, as this rank sees them
  std::map<std::string, std::string> unknown_;  // to this rank: file as it is -> its path
  double unknown_bytes_ = 0;
};

}  // namespace

bool verify_stores(Run& run, bool again) {
  std::set<std::string> all;
  for (const auto& [name, source] : run.recipe.data.sources) all.insert(name);
  return Verification(run, all, /*remembers=*/true)(again);
}

bool verify_stores_of(Run& run, const std::set<std::string>& sources, bool again) {
  return Verification(run, sources, /*remembers=*/false)(again);
}

}  // namespace sala
