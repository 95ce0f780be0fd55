// The only door to xxHash: XXH3 of bytes, as lower-case hexadecimal (big-endian canonical form,
// what Python's xxhash prints), whole or streamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace sala {

std::uint64_t xxh3_64(const void* bytes, std::size_t num_bytes, std::uint64_t seed = 0);
std::string xxh3_64_hex(const void* bytes, std::size_t num_bytes);   // 16 digits
std::string xxh3_128_hex(const void* bytes, std::size_t num_bytes);  // 32 digits

inline std::uint64_t xxh3_64(std::string_view text, std::uint64_t seed = 0) {
  return xxh3_64(text.data(), text.size(), seed);
}

enum class Xxh3Width { k64, k128 };

// Streamed hash: update() any number of times, then hex().
class Xxh3Stream {
 public:
  explicit Xxh3Stream(Xxh3Width width);
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void update(const void* bytes, std::size_t num_bytes);
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sala
