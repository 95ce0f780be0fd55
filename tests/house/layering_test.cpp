// Reads the #include lines of the checkout: which folder may know which, and which single file is
// the door to each library.
#include <gtest/gtest.h>

#include <map>

#include "tests/house/source_tree.h"

namespace sala::house {
namespace {

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"kernels", {"kernels"}},
    {"data", {"data"}},
    {"model", {"model", "kernels"}},
    {"trainer", {"trainer", "model", "kernels", "data"}},
    {"tests", {"tests", "trainer", "model", "kernels", "data"}},
};

// Rooms of a folder that know only these of its own rooms ("": the folder's root). Rooms that are
// not listed may know every other.
const std::map<std::string, std::set<std::string>> kRoomMayInclude = {
    {"kernels/gpu", {""}},
    {"kernels/twins", {""}},
    {"kernels/rows", {"", "gpu"}},
    {"kernels/vocabulary", {"", "gpu"}},
    {"kernels/fp8", {"", "rows"}},
    {"kernels/lightning", {"", "gpu"}},
    {"data/files", {""}},
    {"data/stores", {"", "files"}},
    {"data/teacher", {"", "files"}},
    {"trainer/recipe", {""}},
    {"trainer/ranks", {"", "recipe"}},
    {"trainer/sharding", {}},
    {"trainer/journal", {"", "recipe", "ranks"}},
    {"trainer/charts", {}},
    {"trainer/report", {"charts", "journal"}},
    {"trainer/checkpoint", {"", "ranks", "sharding"}},
    {"trainer/teacher", {"", "recipe", "journal"}},
};

// A header (or the start of one) and the only files that may include it.
struct Door {
  std::string header;
  std::set<std::string> files;
};

const std::vector<Door> kDoors = {
    {"mpi.h", {"trainer/ranks/mpi_group.cpp"}},
    {"nccl.h", {"kernels/nccl_comm.cpp"}},
    {"cublasLt.h", {"kernels/fp8/cublaslt.cpp"}},
    {"yaml-cpp/", {"trainer/recipe/yaml_reader.cpp"}},
    {"hdf5", {"data/files/hdf5_library.h"}},
    {"data/files/hdf5_library.h", {"data/files/hdf5_impl.h", "data/files/hdf5_library.cpp"}},
    {"data/files/hdf5_impl.h",
     {"data/files/hdf5_file.cpp", "data/files/hdf5_datasets.cpp", "data/files/hdf5_attributes.cpp",
      "data/files/hdf5_types.cpp"}},
    {"CLI/", {"trainer/main.cpp", "trainer/inspect_main.cpp", "trainer/bench_main.cpp"}},
};

bool starts_with_any(const std::string& text, const std::vector<std::string>& starts) {
  return std::any_of(starts.begin(), starts.end(),
                     [&](const std::string& start) { return text.rfind(start, 0) == 0; });
}

TEST(Layering, FoldersIncludeOnlyWhatTheyMayKnow) {
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const std::string& file : sources_in(folder)) {
      for (const Include& include : includes_of(file)) {
        if (!include.quoted) continue;
        const std::string target = include.name.substr(0, include.name.find('/'));
        EXPECT_TRUE(allowed.count(target))
            << file << " includes " << include.name << ": " << folder << " may not know " << target;
        EXPECT_TRUE(fs::exists(kRoot / include.name))
            << file << " includes " << include.name << ", which is no path from the root";
      }
    }
  }
}

TEST(Layering, RoomsIncludeOnlyWhatTheyMayKnow) {
  for (const auto& [room, allowed] : kRoomMayInclude) {
    ASSERT_TRUE(fs::is_directory(kRoot / room)) << room << " is no room any more";
    const std::string folder = room.substr(0, room.find('/'));
    for (const std::string& file : sources_in(room)) {
      for (const Include& include : includes_of(file)) {
        const fs::path target(include.name);
        if (!include.quoted || *target.begin() != folder) continue;
        const std::string parent = target.parent_path().string();
        const std::string other = parent == folder ? "" : parent.substr(folder.size() + 1);
        EXPECT_TRUE(parent == room || allowed.count(other))
            << file << " includes " << include.name << ": " << room << " may not know it";
      }
    }
  }
}

// What is read first stays at a folder's root; the rest has a room.
TEST(Layering, NoFolderHoldsMoreThanFitsInOneView) {
  constexpr int64_t kMostFiles = 30;
  for (const std::string folder : {"kernels", "data", "model", "trainer"}) {
    std::map<std::string, int64_t> count;
    for (const std::string& file : sources_in(folder)) {
      ++count[fs::path(file).parent_path().string()];
    }
    for (const auto& [room, num_files] : count) {
      EXPECT_LE(num_files, kMostFiles) << room << ": split it by subject";
    }
  }
}

TEST(Layering, NamesInARoomDoNotRepeatIt) {
  for (const std::string folder : {"kernels", "data", "model", "trainer"}) {
    for (const std::string& file : sources_in(folder)) {
      const fs::path path(file);
      const std::string room = path.parent_path().filename().string();
      if (path.parent_path() == folder) continue;
      EXPECT_FALSE(path.stem().string().starts_with(room + "_")) << file;
    }
  }
}

TEST(Layering, EachLibraryHasOneDoor) {
  for (const auto& [folder, allowed] : kMayInclude) {
    if (folder == "tests") continue;
    for (const std::string& file : sources_in(folder)) {
      for (const Include& include : includes_of(file)) {
        for (const Door& door : kDoors) {
          if (include.name.rfind(door.header, 0) != 0) continue;
          EXPECT_TRUE(door.files.count(file))
              << file << " includes " << include.name << "; only " << *door.files.begin() << " may";
        }
      }
    }
  }
}

TEST(Layering, OnlyTheTrainerLogs) {
  for (const std::string folder : {"kernels", "data", "model"}) {
    for (const std::string& file : sources_in(folder)) {
      for (const Include& include : includes_of(file)) {
        EXPECT_NE(include.name.rfind("spdlog/", 0), 0u) << file << ": lower layers throw or return";
      }
    }
  }
}

TEST(Layering, CudaSourcesKnowNoTensors) {
  for (const std::string& file : files_in("kernels", {".cu", ".cuh"})) {
    for (const Include& include : includes_of(file)) {
      EXPECT_FALSE(starts_with_any(include.name, {"torch/", "ATen/", "c10/"}))
          << file << " includes " << include.name << ": a .cu file takes pointers and a stream";
    }
  }
}

TEST(Layering, NoSourceIncludesAllOfTorch) {
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const std::string& file : sources_in(folder)) {
      for (const Include& include : includes_of(file)) {
        EXPECT_NE(include.name, "torch/torch.h")
            << file << ": costs 10 s in every file; take <ATen/ATen.h>, <torch/types.h> or "
            << "<torch/csrc/autograd/...>, which are precompiled";
      }
    }
  }
}

TEST(Layering, NoFolderForLeftovers) {
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const std::string name : {"utils", "util", "common", "misc", "helpers"}) {
      EXPECT_FALSE(fs::exists(kRoot / folder / name)) << folder << "/" << name;
    }
  }
  for (const std::string name : {"utils", "util", "common", "misc", "helpers"}) {
    EXPECT_FALSE(fs::exists(kRoot / name)) << name;
  }
}

}  // namespace
}  // namespace sala::house
