// The walk behind data/files/hdf5_heaps.h. A heap: "GCOL", version, size of the whole; then
// objects: index (u16), references (u16), four bytes of nothing, size (u64), content padded to 8
// bytes. Index 0 is free space, its size counts its header, and it ends the heap. An attribute
// refers to a string by length (u32), address of the heap (u64) and index (u32).
#include "data/files/hdf5_heaps.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace sala {
namespace {

constexpr std::uint64_t kWindow = 64 << 10;
constexpr std::uint64_t kHeader = 16;      // of the heap, and of each object
constexpr std::uint64_t kSmallest = 4096;  // a heap
constexpr std::string_view kSignature = "GCOL";

template <class T>
T number_at(std::string_view bytes, std::uint64_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

using Sizes = std::map<std::uint32_t, std::uint64_t>;  // of the objects, by index

// False where the sizes do not fill the heap.
bool walk(std::string_view heap, Sizes& sizes) {
  std::uint64_t at = kHeader;
  while (heap.size() - at >= kHeader) {
    const auto index = number_at<std::uint16_t>(heap, at);
    const auto size = number_at<std::uint64_t>(heap, at + 8);
    const std::uint64_t room = heap.size() - at;
    if (index == 0) return size == room;
    if (size > room - kHeader || !sizes.emplace(index, size).second) return false;
    at += std::min(room, kHeader + (size + 7) / 8 * 8);
  }
  return true;
}

// Whether every attribute in `bytes` that refers to the heap at `address` finds its string there.
// The address alone might be any number: before it stand the string's type and the space of one
// value.
bool references_fit(std::string_view bytes, std::uint64_t address, const Sizes& sizes) {
  constexpr size_t kType = 24;
  constexpr char kVariableLength = 0x19;
  constexpr std::string_view kOneValue("\1\0\0\0\0\0\0\0", 8);
  const std::string_view needle(reinterpret_cast<const char*>(&address), sizeof address);
  const size_t before = kType + kOneValue.size() + sizeof(std::uint32_t);
  for (size_t at = bytes.find(needle, before); at != std::string::npos;
       at = bytes.find(needle, at + 1)) {
    if (bytes.size() - at < sizeof address + sizeof(std::uint32_t)) break;
    if (bytes[at - before] != kVariableLength) continue;
    if (bytes.substr(at - before + kType, kOneValue.size()) != kOneValue) continue;
    const auto object = sizes.find(number_at<std::uint32_t>(bytes, at + sizeof address));
    if (object == sizes.end() || number_at<std::uint32_t>(bytes, at - 4) > object->second) {
      return false;
    }
  }
  return true;
}

std::string read_part(std::ifstream& file, std::uint64_t from, std::uint64_t count) {
  std::string bytes(count, '\0');
  file.clear();
  file.seekg(static_cast<std::streamoff>(from));
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(file.gcount()));
  return bytes;
}

}  // namespace

void check_string_heaps(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return;  // HDF5 opens it next, and says why it cannot be
  const auto num_bytes = static_cast<std::uint64_t>(std::max<std::streamoff>(0, file.tellg()));
  const std::uint64_t last = num_bytes - std::min(num_bytes, kWindow);
  const std::string head = read_part(file, 0, kWindow), tail = read_part(file, last, kWindow);
  for (const auto& [first, window] : {std::pair{std::uint64_t{0}, &head}, {last, &tail}}) {
    for (size_t at = window->find(kSignature); at != std::string::npos;
         at = window->find(kSignature, at + 1)) {
      if (window->size() - at < kHeader) break;
      // Any other version HDF5 refuses; in token data the four letters may stand by chance.
      if (number_at<std::uint32_t>(*window, at + 4) != 1) continue;
      const auto size = number_at<std::uint64_t>(*window, at + 8);
      const std::uint64_t start = first + at;
      Sizes sizes;
      if (size >= kSmallest && size <= num_bytes - start &&
          walk(read_part(file, start, size), sizes) && references_fit(head, start, sizes) &&
          references_fit(tail, start, sizes)) {
        continue;
      }
      throw std::runtime_error(path + ": the strings at byte " + std::to_string(start) +
                               " have sizes that do not add up; the file is truncated or damaged: "
                               "restore it from a copy or write it again");
    }
  }
}

}  // namespace sala
