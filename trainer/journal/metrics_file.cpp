// Cutting, appending and fsync behind trainer/journal/metrics_file.h.
#include "trainer/journal/metrics_file.h"

#include <fcntl.h>

#include <algorithm>

#include "data/files/atomic_file.h"

namespace sala {
namespace {

constexpr int64_t kBlockBytes = 64 << 10;

// End of the last whole line in the first `num_bytes`; block by block from the end, for a power
// loss can leave megabytes of zeros.
int64_t end_of_lines(const Descriptor& file, int64_t num_bytes) {
  for (int64_t end = num_bytes; end > 0;) {
    const int64_t begin = std::max<int64_t>(0, end - kBlockBytes);
    const size_t newline = file.read(begin, end - begin).rfind('\n');
    if (newline != std::string::npos) return begin + static_cast<int64_t>(newline) + 1;
    end = begin;
  }
  return 0;
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, int64_t num_bytes)
    : file_(path, O_RDWR | O_CREAT | O_APPEND) {
  size_ = end_of_lines(file_, std::min(num_bytes, file_.size()));
  file_.truncate(size_);
}

void MetricsFile::append(const nlohmann::json& line) {
  if (!error_.empty()) return;
  // A number that is not finite becomes null; text that is not UTF-8 must not end a run.
  const std::string text =
      line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  try {
    file_.write(text);
    size_ += static_cast<int64_t>(text.size());
  } catch (const std::exception& error) {
    error_ = error.what();
  }
  if (error_.empty()) return;
  try {
    file_.truncate(size_);  // no half line
  } catch (const std::exception&) {
    return;  // the next start cuts it
  }
}

void MetricsFile::sync() {
  if (!error_.empty()) return;
  try {
    file_.sync();
  } catch (const std::exception& error) {
    error_ = error.what();
  }
}

namespace {

bool tells_of(const std::string& path, const std::string& event) {
  return path_exists(path) &&
         read_text_file(path).find("\"event\":\"" + event + "\"") != std::string::npos;
}

}  // namespace

bool tells_of_checkpoints(const std::string& path) { return tells_of(path, "checkpoint"); }

bool tells_of_fork(const std::string& path) { return tells_of(path, "fork"); }

}  // namespace sala
