// Held-out rows: fixed windows of a source's documents, the same in every call, run and world size.
#pragma once

#include <cstdint>
#include <vector>

#include "data/packing.h"
#include "data/source.h"

namespace sala {

// Plans `num_rows` rows of at most `row_length` tokens. First windows of row_length tokens, each a
// row of its own from one document (position 0 at its start): one per long enough document, spread
// evenly over them, then further disjoint windows of the same documents; where these run out,
// shorter documents, whole, packed. Only `seed` moves windows. Fewer rows when the source holds no
// more.
std::vector<RowPlan> plan_eval_rows(const Source& source, std::int64_t row_length,
                                    std::int64_t num_rows, std::uint64_t seed);

// plan_eval_rows, read: source_of_doc is 0 throughout. Rows may be shorter than row_length.
std::vector<Row> eval_rows(const std::vector<std::string>& files,
                           const TokenizerIdentity& tokenizer, std::int64_t row_length,
                           std::int64_t num_rows, std::uint64_t seed,
                           const StoreCatalog& catalog = {});

}  // namespace sala
