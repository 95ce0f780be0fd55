// Reading and checking behind data/files/safetensors.h.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>

#include "data/files/safetensors.h"

namespace sala {
namespace {

using nlohmann::json;

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference library's limit
constexpr int kMostHeaderDepth = 8;               // the format has three

struct DtypeInfo {
  const char* name;
  int64_t num_bytes;
  std::optional<at::ScalarType> type;  // nullopt: known to the format, not to us
};

const DtypeInfo kDtypes[] = {
    {"F64", 8, at::kDouble},     {"F32", 4, at::kFloat},       {"F16", 2, at::kHalf},
    {"BF16", 2, at::kBFloat16},  {"I64", 8, at::kLong},        {"I32", 4, at::kInt},
    {"I16", 2, at::kShort},      {"I8", 1, at::kChar},         {"U8", 1, at::kByte},
    {"BOOL", 1, at::kBool},      {"U16", 2, std::nullopt},     {"U32", 4, std::nullopt},
    {"U64", 8, std::nullopt},    {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
    {"F8_E8M0", 1, std::nullopt}};

const DtypeInfo* find_dtype(const std::string& name) {
  for (const DtypeInfo& info : kDtypes) {
    if (name == info.name) return &info;
  }
  return nullptr;
}

[[noreturn]] void fail(const std::string& path, int64_t offset, std::string problem) {
  constexpr size_t kMostBytes = 300;  // names in the header may hold anything
  if (problem.size() > kMostBytes) problem = problem.substr(0, kMostBytes) + "…";
  for (char& c : problem) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  throw std::runtime_error(path + ": at byte " + std::to_string(offset) + ": " + problem +
                           "; fetch or write the file again");
}

// Product of the sizes, nullopt on overflow or a negative size.
std::optional<int64_t> count_bytes(const std::vector<int64_t>& shape, int64_t element_bytes) {
  int64_t n = element_bytes;
  for (int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(n, size, &n)) return std::nullopt;
  }
  return n;
}

// JSON allows a key twice and keeps the last; in a header that would hide a tensor.
json parse_header(const std::string& path, const char* text, int64_t num_bytes) {
  std::set<std::string> names;
  std::string twice;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    // Deeper values would overflow the stack of whoever walks them.
    if (depth > kMostHeaderDepth) fail(path, 8, "the header is nested deeper than the format");
    if (depth == 1 && event == json::parse_event_t::key &&
        !names.insert(value.get<std::string>()).second) {
      twice = value.get<std::string>();
    }
    return true;
  };
  json header;
  try {
    header = json::parse(text, text + num_bytes, watch);
  } catch (const json::parse_error& error) {
    fail(path, 8 + static_cast<int64_t>(error.byte), "the header is not valid JSON");
  } catch (const json::out_of_range&) {  // a number that is none
    fail(path, 8, "the header is not valid JSON");
  }
  if (!header.is_object()) fail(path, 8, "expected a JSON object as header");
  if (!twice.empty()) fail(path, 8, "the header names tensor " + twice + " twice");
  return header;
}

// Small enough for sums of them.
bool is_count(const json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{1} << 62;
}

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const json& value) {
  const auto shape = value.find("shape"), range = value.find("data_offsets");
  const auto dtype = value.find("dtype");
  if (!value.is_object() || dtype == value.end() || !dtype->is_string() || shape == value.end() ||
      !shape->is_array() || !std::all_of(shape->begin(), shape->end(), is_count) ||
      range == value.end() || !range->is_array() || range->size() != 2 ||
      !std::all_of(range->begin(), range->end(), is_count)) {
    fail(path, 8, "tensor " + name + ": expected dtype, shape and two data_offsets in the header");
  }
  SafetensorsEntry entry{dtype->get<std::string>(), shape->get<std::vector<int64_t>>(),
                         (*range)[0].get<int64_t>(), 0};
  const int64_t end = (*range)[1].get<int64_t>();
  const DtypeInfo* info = find_dtype(entry.dtype);
  if (info == nullptr) fail(path, 8, "tensor " + name + ": unknown dtype " + entry.dtype);
  const auto expected = count_bytes(entry.shape, info->num_bytes);
  if (end < entry.offset || !expected || *expected != end - entry.offset) {
    fail(path, 8,
         "tensor " + name + ": data_offsets [" + std::to_string(entry.offset) + ", " +
             std::to_string(end) + "] do not fit its dtype and shape (" +
             (expected ? std::to_string(*expected) : "too many") + " bytes)");
  }
  entry.num_bytes = end - entry.offset;
  return entry;
}

// The ranges must follow each other without gap or overlap and end with the file.
void check_ranges(const std::string& path, const std::map<std::string, SafetensorsEntry>& entries,
                  int64_t data_start, int64_t file_bytes) {
  std::vector<std::pair<std::string, const SafetensorsEntry*>> sorted;
  for (const auto& [name, entry] : entries) sorted.emplace_back(name, &entry);
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->offset, a.second->num_bytes) <
           std::pair(b.second->offset, b.second->num_bytes);
  });
  int64_t end = 0;
  std::string before = "the header";
  for (const auto& [name, entry] : sorted) {
    if (entry->offset != end) {
      const char* how = entry->offset < end ? " overlaps " : " leaves a gap after ";
      fail(path, data_start + entry->offset, "tensor " + name + how + before);
    }
    end = entry->offset + entry->num_bytes;
    before = "tensor " + name;
  }
  if (data_start + end > file_bytes) {
    fail(path, file_bytes,
         "the file ends, the header promises " + std::to_string(data_start + end) +
             " bytes (truncated)");
  }
  if (data_start + end < file_bytes) {
    fail(path, data_start + end,
         "bytes follow the last tensor, the file has " + std::to_string(file_bytes) + " bytes");
  }
}

}  // namespace

// Bytes are read, not mapped: a mapped file that is cut, or whose disk fails, kills the process
// (SIGBUS).
class SafetensorsReader::File {
 public:
  explicit File(const std::string& path) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) throw std::runtime_error(path + ": cannot open: " + std::strerror(errno));
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      throw std::runtime_error(path + ": expected a regular file");
    }
    version_ = version_of(status);
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const Version& version() const { return version_; }  // when it was opened

  void read(void* target, int64_t num_bytes, int64_t offset) const {
    auto* bytes = static_cast<char*>(target);
    while (num_bytes > 0) {
      const ssize_t got = ::pread(descriptor_, bytes, static_cast<size_t>(num_bytes), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        throw std::runtime_error(path_ + ": at byte " + std::to_string(offset) +
                                 ": cannot read: " + std::strerror(errno));
      }
      if (got == 0) fail(path_, offset, "the file ends: it was cut after it was opened");
      bytes += got;
      offset += got;
      num_bytes -= got;
    }
  }

  // Whether this, and what now has its name, is still the file of which `version` was taken: who
  // opens it later reads the other one.
  void check(const Version& version) const {
    struct stat now {};
    const bool found = ::stat(path_.c_str(), &now) == 0;
    if (found && version_ == version && version_of(now) == version) return;
    throw std::runtime_error(
        path_ + ": the file was changed or replaced while it was in use (" +
        std::to_string(version[0]) + " bytes when it was opened, now " +
        (found ? std::to_string(now.st_size) : std::string(std::strerror(errno))) +
        "); run again when it is whole");
  }

 private:
  static Version version_of(const struct stat& status) {
    return {static_cast<int64_t>(status.st_size), static_cast<int64_t>(status.st_ino),
            static_cast<int64_t>(status.st_mtim.tv_sec),
            static_cast<int64_t>(status.st_mtim.tv_nsec)};
  }

  std::string path_;
  int descriptor_ = -1;
  Version version_{};
};

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path) {
  const File file(path);
  version_ = file.version();
  const int64_t file_bytes = version_[0];
  if (file_bytes < 8) fail(path, file_bytes, "the file ends, expected 8 bytes of header length");
  uint64_t header_bytes = 0;
  file.read(&header_bytes, sizeof header_bytes, 0);  // little-endian hosts only
  if (header_bytes > static_cast<uint64_t>(std::min(file_bytes - 8, kMaxHeaderBytes))) {
    fail(path_, 0,
         "a header of " + std::to_string(header_bytes) + " bytes does not fit the " +
             std::to_string(file_bytes) + " bytes of the file");
  }
  data_start_ = 8 + static_cast<int64_t>(header_bytes);
  std::string text(header_bytes, '\0');
  file.read(text.data(), static_cast<int64_t>(header_bytes), 8);
  const json header = parse_header(path_, text.data(), static_cast<int64_t>(header_bytes));
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") entries_.emplace(name, parse_entry(path_, name, value));
  }
  check_ranges(path_, entries_, data_start_, file_bytes);
}

bool SafetensorsReader::can_read(const std::string& dtype) {
  const DtypeInfo* info = find_dtype(dtype);
  return info != nullptr && info->type.has_value();
}

at::Tensor SafetensorsReader::tensor(const std::string& name) const {
  at::Tensor buffer;
  return Open(*this).tensor(name, buffer);
}

SafetensorsReader::Open::Open(const SafetensorsReader& reader)
    : reader_(reader), file_(std::make_unique<File>(reader.path_)) {
  file_->check(reader.version_);
}

SafetensorsReader::Open::~Open() = default;

at::Tensor SafetensorsReader::Open::tensor(const std::string& name, at::Tensor& buffer) const {
  const std::string& path = reader_.path_;
  const auto at = reader_.entries_.find(name);
  if (at == reader_.entries_.end()) throw std::runtime_error(path + ": has no tensor " + name);
  const SafetensorsEntry& entry = at->second;
  const DtypeInfo* info = find_dtype(entry.dtype);
  if (!info->type) {
    throw std::runtime_error(path + ": tensor " + name + ": cannot read dtype " + entry.dtype);
  }
  if (!buffer.defined() || buffer.numel() < entry.num_bytes) {
    buffer = at::empty({entry.num_bytes}, at::TensorOptions().dtype(at::kByte));
  }
  const at::Tensor values =
      buffer.narrow(0, 0, entry.num_bytes).view(*info->type).view(entry.shape);
  file_->read(values.data_ptr(), entry.num_bytes, reader_.data_start_ + entry.offset);
  file_->check(reader_.version_);
  return values;
}

}  // namespace sala
