// Where sums are found, and comparing them.
#include "trainer/folder/hashes.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include "data/files/atomic_file.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

std::string small_text(const std::string& path) {
  std::error_code error;
  constexpr uintmax_t kMostBytes = 10'000'000;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) > kMostBytes) return "";
  return read_text_file(path);
}

// Lines of `sha256sum`: 64 digits, a space, a space or star, the name.
std::string in_sums(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.size() > 66 && line.substr(66) == name && is_sha256(line.substr(0, 64))) {
      return line.substr(0, 64);
    }
  }
  return "";
}

// The hub's client writes commit, tag and time of each download on three lines; the tag of a large
// file is its SHA-256.
std::string in_metadata(const std::string& text) {
  std::istringstream lines(text);
  std::string commit, tag;
  std::getline(lines, commit);
  std::getline(lines, tag);
  return is_sha256(tag) ? tag : "";
}

}  // namespace

StatedHash stated_hash(const std::string& folder, const std::string& name) {
  const std::string sums = folder + "/" + kHashFile;
  if (const std::string hex = in_sums(small_text(sums), name); !hex.empty()) return {hex, sums};
  const std::string metadata = folder + "/.cache/huggingface/download/" + name + ".metadata";
  if (const std::string hex = in_metadata(small_text(metadata)); !hex.empty()) {
    return {hex, metadata};
  }
  // In the hub's cache a snapshot's file is a link to a blob that is named by its sum.
  std::error_code error;
  const fs::path blob = fs::read_symlink(folder + "/" + name, error);
  if (!error && is_sha256(blob.filename().string())) {
    return {blob.filename().string(), "the name of its blob in the cache"};
  }
  return {};
}

FileHash::FileHash(const std::string& path) : path_(path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  std::string header(file ? header_bytes : 0, '\0');  // the reader has checked this number
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  if (!file) throw std::runtime_error(path + ": cannot read the header again");
  hash_.update(&header_bytes, sizeof header_bytes);
  hash_.update(header.data(), header.size());
}

void FileHash::update(const at::Tensor& tensor) {
  hash_.update(tensor.const_data_ptr(), tensor.nbytes());
}

void FileHash::check(const StatedHash& stated) const {
  const std::string hex = hash_.hex();
  if (hex == stated.hex) return;
  throw std::runtime_error(path_ + ": its SHA-256 is " + hex + ", but " + stated.where +
                           " states " + stated.hex +
                           ": the file is damaged or was changed; fetch it again");
}

void write_hashes(const std::string& folder, const std::vector<std::string>& names,
                  std::map<std::string, std::string> known) {
  for (const std::string& name : names) known[name] = sha256_of_file(folder + "/" + name);
  std::string text;
  for (const auto& [name, hex] : known) text += hex + "  " + name + "\n";
  write_file_atomically(folder + "/" + kHashFile, text);
}

}  // namespace sala
