// The line that marks a text as ours.
#include "trainer/journal/own_files.h"

#include <fcntl.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hash.h"
#include "data/files/hdf5_file.h"

namespace sala {
namespace {

using Mark = std::string (*)(const std::string& text);

std::string mark_of(const std::string& text) {
  return "# written by sala-train; hash of the lines above: " +
         xxh3_64_hex(text.data(), text.size()) + "\n";
}

std::string page_mark_of(const std::string& html) {
  return "<!-- written by sala-train; hash of the lines above: " +
         xxh3_64_hex(html.data(), html.size()) + " -->\n";
}

[[noreturn]] void refuse(const std::string& path) {
  throw std::runtime_error(path +
                           ": the run writes a file of this name, but the one that is there was "
                           "not written by it, or was edited since; move it elsewhere");
}

void check_own_text(const std::string& path, Mark mark_for = mark_of) {
  if (!path_exists(path)) return;
  const std::string all = read_text_file(path);
  const size_t mark = all.size() - std::min(all.size(), mark_for("").size());
  const std::string text = all.substr(0, mark);
  if (all != text + mark_for(text)) refuse(path);
}

// Every line of ours is an object with an event. The first one may be torn, or lost: zeros.
void check_own_metrics(const std::string& path) {
  if (!path_exists(path)) return;
  constexpr int64_t kMostBytes = 64 << 10;
  const std::string start = Descriptor(path, O_RDONLY).read(0, kMostBytes);
  const size_t end = start.find('\n');
  const std::string line = start.substr(0, end);
  if (line.find_first_not_of('\0') == std::string::npos) return;
  const auto json = nlohmann::json::parse(line, nullptr, false);
  const bool torn = end == std::string::npos && line.starts_with("{\"");
  if (!torn && !(json.is_object() && json.contains("event"))) refuse(path);
}

}  // namespace

void check_own_files(const std::string& run_folder) {
  check_own_metrics(run_folder + "/" + kMetricsFile);
  for (const char* name : {kRecipeFile, kReportFile}) check_own_text(run_folder + "/" + name);
  const std::string scores = run_folder + "/" + kScoresFile;
  if (!path_exists(scores)) return;
  try {
    const Hdf5File file = Hdf5File::open(scores);
    if (file.has_attribute("method") && file.exists("score")) return;
  } catch (const FileError&) {
    throw;
  } catch (const std::exception&) {
    refuse(scores);  // no HDF5 file
  }
  refuse(scores);
}

void write_own_text(const std::string& path, const std::string& text) {
  check_own_text(path);
  write_file_atomically(path, text + mark_of(text));
}

void write_own_page(const std::string& path, const std::string& html) {
  check_own_text(path, page_mark_of);
  write_file_atomically(path, html + page_mark_of(html));
}

}  // namespace sala
