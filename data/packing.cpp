// Reading and counting behind data/packing.h.
#include "data/packing.h"

#include <numeric>

namespace sala {
namespace {

// Targets of a piece: its tokens but the first, and the token after it if the document goes on.
std::int64_t num_targets(const Piece& piece) { return piece.count - (piece.ends_document ? 1 : 0); }

void append_piece(const Source& source, const Piece& piece, Row& row) {
  const std::int64_t targets = num_targets(piece);
  const auto ids = source.read(piece.document, piece.offset, targets + 1);
  row.doc_starts.push_back(static_cast<std::int64_t>(row.ids.size()));
  row.source_of_doc.push_back(piece.source);
  row.ids.insert(row.ids.end(), ids.begin(), ids.begin() + piece.count);
  row.targets.insert(row.targets.end(), ids.begin() + 1, ids.end());
  const auto mask = source.read_loss_mask(piece.document, piece.offset + 1, targets);
  row.loss_weight.insert(row.loss_weight.end(), mask.begin(), mask.end());
  if (piece.ends_document) {
    row.targets.push_back(0);
    row.loss_weight.push_back(0.0f);
  }
  const auto first = static_cast<std::ptrdiff_t>(row.position.size());
  row.position.resize(row.ids.size());
  std::iota(row.position.begin() + first, row.position.end(), 0);
}

}  // namespace

Row read_row(const std::vector<Source>& sources, const RowPlan& plan) {
  Row row;
  for (const Piece& piece : plan) append_piece(sources[piece.source], piece, row);
  return row;
}

std::int64_t count_targets(std::span<const Source> sources, const RowPlan& plan) {
  std::int64_t total = 0;
  for (const Piece& piece : plan) {
    const Source& source = sources[piece.source];
    const std::int64_t targets = num_targets(piece);
    if (!source.has_loss_mask(piece.document)) {
      total += targets;
      continue;
    }
    const auto mask = source.read_loss_mask(piece.document, piece.offset + 1, targets);
    total += std::accumulate(mask.begin(), mask.end(), std::int64_t{0});
  }
  return total;
}

}  // namespace sala
