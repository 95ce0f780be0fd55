// How a struct tells its recipe keys. Each options struct has `void describe(Fields&)` that names
// every key once; visitors use it: the strict YAML reader (fills values, collects errors with
// file:line:column and did-you-mean), the printer of the resolved recipe, and the key lister behind
// `sala-train --keys` and the test of recipes/README.md. So a key exists in exactly one place.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace sala {

enum class Need { kRequired, kOptional };  // optional: the member's initial value is the default

// The smallest and the largest value a count may have. Every count has a range, and the widest ends
// far below 2^63, so that no sum or product of two of them, or of one and a model's sizes, wraps.
struct CountRange {
  int64_t least = 0;
  int64_t most = int64_t{1} << 30;  // 1G
};
// Tokens of a stage or bytes of a file: 1048576G.
inline constexpr int64_t kMostTokens = int64_t{1} << 50;
// Tokens of one step; of one row or prompt.
inline constexpr int64_t kMostBatchTokens = int64_t{1} << 34;
inline constexpr int64_t kMostRowTokens = int64_t{1} << 30;
// Numbers are at most this far from 0.
inline constexpr double kMostNumber = 1e9;
// Bytes of one text, which is more than any path may have.
inline constexpr size_t kMostText = 4096;

class Fields {
 public:
  virtual ~Fields() = default;
  // Counts (tokens, rows, steps): digits with an optional K (1,024), M (1,024^2) or G (1,024^3).
  virtual void count(const char* key, int64_t& value, Need need, const char* help,
                     CountRange range = {}) = 0;
  virtual void number(const char* key, double& value, Need need, const char* help) = 0;
  virtual void flag(const char* key, bool& value, Need need, const char* help) = 0;
  virtual void text(const char* key, std::string& value, Need need, const char* help) = 0;
  // A path as people write it; `~/x` is in the home folder.
  virtual void path(const char* key, std::string& value, Need need, const char* help) = 0;
  // One of `choices`.
  virtual void choice(const char* key, std::string& value, std::vector<std::string> choices,
                      Need need, const char* help) = 0;
  // [1K, 2K] or a single value.
  virtual void counts(const char* key, std::vector<int64_t>& value, Need need, const char* help,
                      CountRange range = {}) = 0;
  virtual void numbers(const char* key, std::vector<double>& value, Need need,
                       const char* help) = 0;
  virtual void texts(const char* key, std::vector<std::string>& value, Need need,
                     const char* help) = 0;
  virtual void paths(const char* key, std::vector<std::string>& value, Need need,
                     const char* help) = 0;
  virtual void weights(const char* key, std::map<std::string, double>& value, Need need,
                       const char* help) = 0;  // {source name: weight}
  // A nested mapping of fixed keys.
  virtual void section(const char* key, Need need, const char* help,
                       const std::function<void(Fields&)>& describe) = 0;
  // A nested mapping whose keys are the user's names; describe(name, fields) reads or tells one
  // element. `names`: those there are now, for the printer.
  virtual void named_sections(const char* key, Need need, const char* help,
                              const std::vector<std::string>& names,
                              const std::function<void(const std::string&, Fields&)>& describe) = 0;
  // A list of mappings of fixed keys; describe(index, fields) reads or tells one element and makes
  // room for it. `size`: how many there are now, for the printer.
  virtual void list(const char* key, Need need, const char* help, size_t size,
                    const std::function<void(size_t, Fields&)>& describe) = 0;
  // A list of mappings with exactly one key, the element's type, which is one of `types`:
  // `- align: {…}`. `current`: the types of the elements there are now, for the printer.
  virtual void variants(
      const char* key, Need need, const char* help, const std::vector<std::string>& types,
      const std::vector<std::string>& current,
      const std::function<void(size_t, const std::string& type, Fields&)>& describe) = 0;
};

// Collects problems found after reading: arithmetic, files, the machine. `key` is a path such as
// "stages[2].distill.batch_tokens"; file:line:column of that key are added to it.
class Problems {
 public:
  virtual ~Problems() = default;
  // Nothing is added to a key that could not be read: it has its problem already.
  virtual void add(const std::string& key, const std::string& message) = 0;
  // Whether the value of `key` was read, so that arithmetic with it means something.
  virtual bool knows(const std::string& key) const = 0;
  // Whether it was, and neither it nor anything inside has a problem so far.
  virtual bool clean(const std::string& key) const = 0;
};

}  // namespace sala
