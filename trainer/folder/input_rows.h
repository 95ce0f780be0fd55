// Token ids for a model to run, from files that others wrote: every id is one of its vocabulary.
// Errors: std::runtime_error with one line that names the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/stores/token_store.h"

namespace sala {

using InputRows = std::vector<std::vector<int64_t>>;

// JSON rows of token ids, [[1, 2, 3], [4, 5, 6]]: one or more, none empty.
InputRows read_ids(const std::string& path, int64_t vocab_size);

// The first `count` tokens of a token store's first document of so many.
std::vector<int64_t> read_document(const std::string& path, const TokenizerIdentity& tokenizer,
                                   int64_t count);

}  // namespace sala
