// Rows: pieces of documents laid end to end, with everything the loss and the attention need. What
// a token predicts is decided here; nothing shifts labels later.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/source.h"

namespace sala {

// Tokens [offset, offset + count) of one document of one source.
struct Piece {
  std::int32_t source;    // index in the stage's list of sources
  std::int64_t document;  // numbered through the source
  std::int64_t offset;
  std::int64_t count;
  bool ends_document;  // its last token is the document's last (EOS), which predicts nothing
};

using RowPlan = std::vector<Piece>;

struct Row {
  std::vector<std::int32_t> ids;            // (T)
  std::vector<std::int32_t> targets;        // (T) next token of the same document; 0 where none
  std::vector<float> loss_weight;           // (T) 1: the target counts; 0: it does not, or is none
  std::vector<std::int32_t> position;       // (T) 0 at each piece's start
  std::vector<std::int64_t> doc_starts;     // (D) first token of each piece; doc_starts[0] = 0
  std::vector<std::int32_t> source_of_doc;  // (D)
};

// Reads the plan's tokens. At a cut (the document goes on in another row) the last token's target
// is the document's next token, with its weight: no prediction is lost. Attention does not cross
// pieces.
Row read_row(const std::vector<Source>& sources, const RowPlan& plan);

// The sum of loss_weight of read_row(plan), from document structure alone, or from the loss masks
// where there are any.
std::int64_t count_targets(std::span<const Source> sources, const RowPlan& plan);

}  // namespace sala
