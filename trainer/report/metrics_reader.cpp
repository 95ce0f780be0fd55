// Blocks of the file, cut into lines.
#include "trainer/report/metrics_reader.h"

#include <fcntl.h>

#include <algorithm>

#include "data/files/file_calls.h"

namespace sala {
namespace {

constexpr int64_t kBlockBytes = 4 << 20;

// Takes "key":{…} out of a line of ours. Only objects without braces inside are cut right; what is
// no JSON afterwards is read whole (parse_metrics_line).
void cut_member(std::string& line, const std::string& key) {
  const size_t begin = line.find("\"" + key + "\":{");
  if (begin == std::string::npos) return;
  size_t end = line.find('}', begin);
  if (end == std::string::npos) return;
  ++end;
  if (end < line.size() && line[end] == ',') ++end;
  line.erase(begin, end - begin);
}

// The words NaN, Infinity and -Infinity become null, outside of strings.
std::string without_words(const std::string& line) {
  std::string out;
  bool in_text = false;
  for (size_t at = 0; at < line.size(); ++at) {
    const char c = line[at];
    if (in_text && c == '\\' && at + 1 < line.size()) {
      out += line.substr(at++, 2);
      continue;
    }
    if (c == '"') in_text = !in_text;
    bool replaced = false;
    for (const char* word : {"NaN", "-Infinity", "Infinity"}) {
      const std::string text(word);
      if (in_text || line.compare(at, text.size(), text) != 0) continue;
      out += "null";
      at += text.size() - 1;
      replaced = true;
      break;
    }
    if (!replaced) out += c;
  }
  return out;
}

}  // namespace

nlohmann::json parse_metrics_line(std::string line) {
  const std::string whole = line;
  cut_member(line, "grad_norms");
  auto json = nlohmann::json::parse(line, nullptr, false);
  if (json.is_discarded()) json = nlohmann::json::parse(without_words(whole), nullptr, false);
  return json;
}

void MetricsReader::read(const std::function<void(nlohmann::json&& line)>& take) {
  if (!path_exists(path_)) return;
  const Descriptor file(path_, O_RDONLY);
  const int64_t size = file.size();
  std::string rest;  // of a line that goes on in the next block
  for (int64_t at = offset_; at < size;) {
    const std::string block = file.read(at, std::min(kBlockBytes, size - at));
    if (block.empty()) return;
    at += static_cast<int64_t>(block.size());
    size_t begin = 0;
    for (size_t end = 0; (end = block.find('\n', begin)) != std::string::npos; begin = end + 1) {
      rest.append(block, begin, end - begin);
      offset_ += static_cast<int64_t>(rest.size()) + 1;
      nlohmann::json json = parse_metrics_line(std::move(rest));
      rest.clear();
      if (json.is_object()) {
        take(std::move(json));
      } else {
        ++num_unreadable_;
      }
    }
    rest.append(block, begin);
  }
}

}  // namespace sala
