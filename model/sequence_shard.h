// A rank's part of a line of tokens that several ranks share (context parallelism).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/collectives.h"
#include "kernels/documents.h"

namespace sala {

// The ranks of `comm` hold the line in rank order: shard r is [borders[r], borders[r + 1]). A
// document may begin on an earlier rank and go on on a later one; where a border is also a
// document's start, nothing crosses it. Everything here is host arithmetic that all ranks do alike,
// so that they agree on which collectives they call.
struct SequenceShard {
  Comm* comm = nullptr;
  std::vector<int64_t> borders;  // size of comm + 1; rising strictly: no shard is empty
  Documents whole;               // the line's documents

  int64_t begin() const { return borders[comm->rank()]; }
  int64_t end() const { return borders[comm->rank() + 1]; }
  int64_t num_tokens(int rank) const { return borders[rank + 1] - borders[rank]; }
  int64_t longest() const;  // tokens of the longest shard

  // The document of the line that holds a token.
  int64_t document_at(int64_t token) const;
  // Border r lies in front of shard r; borders 0 and R are never crossed.
  bool is_crossed(int border) const;
  bool any_crossed() const;

  // Of this rank. A local document is a piece: number 0 may have begun on an earlier rank.
  int64_t first_document() const { return document_at(begin()); }
  int64_t whole_length(int64_t local_doc) const {
    return whole.length(first_document() + local_doc);
  }
  // Where the document that holds this rank's first token begins.
  int64_t first_key() const { return whole.offsets[first_document()]; }
  // The pieces that lie in this shard.
  Documents local_documents() const;
  // The same documents' tokens in [first_key, end): what this rank's queries may look at. The
  // queries of a document are its last tokens, as the attention ops want it.
  Documents key_documents() const;
};

// Shard r is [T r / R, T (r + 1) / R). TORCH_CHECK fails where a line of T tokens is too short.
std::vector<int64_t> shard_borders(int64_t num_tokens, int num_ranks);

}  // namespace sala
