// Reading and checking behind data/safetensors.h.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>

#include "data/safetensors.h"

namespace sala {
namespace {

using nlohmann::json;

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference library's limit
constexpr int kMostDepth = 8;                     // the format has three

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
    if (depth > kMostDepth) fail(path, 8, "the header is nested deeper than the format");
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

struct SafetensorsReader::Mapping {
  const char* bytes = nullptr;
  int64_t num_bytes = 0;

  explicit Mapping(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw std::runtime_error(path + ": cannot open: " + std::strerror(errno));
    struct stat status {};
    if (::fstat(fd, &status) == 0) num_bytes = status.st_size;
    void* mapped = num_bytes < 8 ? MAP_FAILED
                                 : ::mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ,
                                          MAP_PRIVATE, fd, 0);
    const int code = errno;
    ::close(fd);
    if (num_bytes < 8) fail(path, num_bytes, "the file ends, expected 8 bytes of header length");
    if (mapped == MAP_FAILED) {
      throw std::runtime_error(path + ": cannot map into memory: " + std::strerror(code));
    }
    bytes = static_cast<const char*>(mapped);
  }
  ~Mapping() {
    if (bytes) ::munmap(const_cast<char*>(bytes), static_cast<size_t>(num_bytes));
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
};

SafetensorsReader::SafetensorsReader(const std::string& path)
    : path_(path), mapping_(std::make_shared<Mapping>(path)) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping_->bytes, sizeof header_bytes);  // little-endian hosts only
  const int64_t rest = mapping_->num_bytes - 8;
  if (header_bytes > static_cast<uint64_t>(std::min(rest, kMaxHeaderBytes))) {
    fail(path_, 0,
         "a header of " + std::to_string(header_bytes) + " bytes does not fit the " +
             std::to_string(mapping_->num_bytes) + " bytes of the file");
  }
  data_start_ = 8 + static_cast<int64_t>(header_bytes);
  const json header = parse_header(path_, mapping_->bytes + 8, data_start_ - 8);
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") entries_.emplace(name, parse_entry(path_, name, value));
  }
  check_ranges(path_, entries_, data_start_, mapping_->num_bytes);
}

bool SafetensorsReader::can_read(const std::string& dtype) {
  const DtypeInfo* info = find_dtype(dtype);
  return info != nullptr && info->type.has_value();
}

at::Tensor SafetensorsReader::tensor(const std::string& name) const {
  const auto at = entries_.find(name);
  if (at == entries_.end()) throw std::runtime_error(path_ + ": has no tensor " + name);
  const SafetensorsEntry& entry = at->second;
  const DtypeInfo* info = find_dtype(entry.dtype);
  if (!info->type) {
    throw std::runtime_error(path_ + ": tensor " + name + ": cannot read dtype " + entry.dtype);
  }
  const auto options = at::TensorOptions().dtype(*info->type);
  const char* bytes = mapping_->bytes + data_start_ + entry.offset;
  if (reinterpret_cast<uintptr_t>(bytes) % static_cast<uintptr_t>(info->num_bytes) != 0) {
    at::Tensor copy = at::empty(entry.shape, options);  // files of other writers may be unaligned
    std::memcpy(copy.data_ptr(), bytes, static_cast<size_t>(entry.num_bytes));
    return copy;
  }
  const auto keep = mapping_;
  return at::from_blob(
      const_cast<char*>(bytes), entry.shape, [keep](void*) {}, options);
}

}  // namespace sala
