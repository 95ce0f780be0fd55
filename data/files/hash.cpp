// xxHash behind data/files/hash.h. Header-only use: no library to link.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cinttypes>
#include <cstdio>
#include <new>

#include "data/files/hash.h"

namespace sala {
namespace {

std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016" PRIx64, value);
  return text;
}

std::string hex(XXH128_hash_t value) { return hex(value.high64) + hex(value.low64); }

}  // namespace

struct Xxh3Stream::State {
  Xxh3Width width;
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

std::uint64_t xxh3_64(const void* bytes, std::size_t num_bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes, num_bytes, seed);
}

std::string xxh3_64_hex(const void* bytes, std::size_t num_bytes) {
  return hex(static_cast<std::uint64_t>(XXH3_64bits(bytes, num_bytes)));
}

std::string xxh3_128_hex(const void* bytes, std::size_t num_bytes) {
  return hex(XXH3_128bits(bytes, num_bytes));
}

Xxh3Stream::Xxh3Stream(Xxh3Width width) : state_(std::make_unique<State>()) {
  if (!state_->xxh) throw std::bad_alloc();
  state_->width = width;
  if (width == Xxh3Width::k64) {
    XXH3_64bits_reset(state_->xxh);
  } else {
    XXH3_128bits_reset(state_->xxh);
  }
}

Xxh3Stream::~Xxh3Stream() = default;

void Xxh3Stream::update(const void* bytes, std::size_t num_bytes) {
  if (state_->width == Xxh3Width::k64) {
    XXH3_64bits_update(state_->xxh, bytes, num_bytes);
  } else {
    XXH3_128bits_update(state_->xxh, bytes, num_bytes);
  }
}

std::string Xxh3Stream::hex() const {
  return state_->width == Xxh3Width::k64
             ? sala::hex(static_cast<std::uint64_t>(XXH3_64bits_digest(state_->xxh)))
             : sala::hex(XXH3_128bits_digest(state_->xxh));
}

}  // namespace sala
