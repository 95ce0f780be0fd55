// The compression function twice: in plain integers, and with the SHA instructions of x86.
#include "data/files/sha256.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace sala {
namespace {

// Fractional parts of the cube roots of the first 64 primes.
alignas(16) constexpr std::uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using State = std::array<std::uint32_t, 8>;

std::uint32_t rotate(std::uint32_t x, int bits) { return (x >> bits) | (x << (32 - bits)); }

std::uint32_t big_endian(const std::uint8_t* bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 |
         std::uint32_t{bytes[2]} << 8 | bytes[3];
}

void compress_plain(State& state, const std::uint8_t* bytes, std::size_t num_blocks) {
  for (; num_blocks > 0; --num_blocks, bytes += 64) {
    std::uint32_t w[64];
    for (int t = 0; t < 16; ++t) w[t] = big_endian(bytes + 4 * t);
    for (int t = 16; t < 64; ++t) {
      const std::uint32_t x = w[t - 15], y = w[t - 2];
      w[t] = w[t - 16] + (rotate(x, 7) ^ rotate(x, 18) ^ x >> 3) + w[t - 7] +
             (rotate(y, 17) ^ rotate(y, 19) ^ y >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int t = 0; t < 64; ++t) {
      const std::uint32_t first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                                  ((e & f) ^ (~e & g)) + kRound[t] + w[t];
      const std::uint32_t second =
          (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first;
      d = c, c = b, b = a, a = first + second;
    }
    const State add{a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += add[i];
  }
}

#ifdef __x86_64__

// Four rounds an iteration. The instructions keep the state as (A B E F) and (C D G H), and make
// the message schedule four words at a time from the sixteen before.
__attribute__((target("sha,sse4.1"))) void compress_x86(State& state, const std::uint8_t* bytes,
                                                        std::size_t num_blocks) {
  const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const auto* words = reinterpret_cast<const __m128i*>(state.data());
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xb1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; num_blocks > 0; --num_blocks, bytes += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; ++i) {
      const auto* block = reinterpret_cast<const __m128i*>(bytes);
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(block + i), order);
    }
    for (int i = 0; i < 16; ++i) {
      const auto* round = reinterpret_cast<const __m128i*>(kRound);
      const __m128i sum = _mm_add_epi32(w[i % 4], _mm_load_si128(round + i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
      const __m128i &next = w[(i + 1) % 4], &after = w[(i + 2) % 4], &last = w[(i + 3) % 4];
      const __m128i partial =
          _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], next), _mm_alignr_epi8(last, after, 4));
      w[i % 4] = _mm_sha256msg2_epu32(partial, last);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  auto* out = reinterpret_cast<__m128i*>(state.data());
  _mm_storeu_si128(out, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(out + 1, _mm_alignr_epi8(dchg, feba, 8));
}

void compress(State& state, const std::uint8_t* bytes, std::size_t num_blocks) {
  static const bool fast = __builtin_cpu_supports("sha") && __builtin_cpu_supports("sse4.1");
  if (fast) {
    compress_x86(state, bytes, num_blocks);
  } else {
    compress_plain(state, bytes, num_blocks);
  }
}

#else

void compress(State& state, const std::uint8_t* bytes, std::size_t num_blocks) {
  compress_plain(state, bytes, num_blocks);
}

#endif

}  // namespace

void Sha256::update(const void* data, std::size_t num_bytes) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  const std::size_t waiting = num_bytes_ % 64;
  num_bytes_ += num_bytes;
  if (waiting > 0) {
    const std::size_t taken = std::min(num_bytes, 64 - waiting);
    std::copy_n(bytes, taken, rest_.begin() + static_cast<std::ptrdiff_t>(waiting));
    if (waiting + taken < 64) return;
    compress(state_, rest_.data(), 1);
    bytes += taken;
    num_bytes -= taken;
  }
  compress(state_, bytes, num_bytes / 64);
  std::copy_n(bytes + num_bytes / 64 * 64, num_bytes % 64, rest_.begin());
}

std::string Sha256::hex() const {
  State state = state_;
  std::uint8_t tail[128] = {};  // what is left, a one bit, zeros, the number of bits
  const std::size_t waiting = num_bytes_ % 64, blocks = waiting < 56 ? 1 : 2;
  std::copy_n(rest_.begin(), waiting, tail);
  tail[waiting] = 0x80;
  for (std::size_t i = 0; i < 8; ++i) {
    tail[blocks * 64 - 1 - i] = static_cast<std::uint8_t>(num_bytes_ * 8 >> 8 * i);
  }
  compress(state, tail, blocks);
  std::string text;
  for (const std::uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  }
  return text;
}

std::string sha256_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot open the file");
  Sha256 hash;
  std::vector<char> block(1 << 20);
  while (file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    hash.update(block.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad()) throw std::runtime_error(path + ": cannot read");
  return hash.hex();
}

}  // namespace sala
