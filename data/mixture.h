// The stream of rows of a stage: which piece of which document comes when. A pure function of
// (sources, weights, seed, lanes, row length, the state it starts from); it knows no ranks and
// reads no tokens.
//
// Row r extends lane r mod `lanes`. A lane holds at most one open document: its tail opens the row
// (position 0, no attention across the cut); then documents come from the source whose share lags
// most (weight * total - emitted, in tokens of this stage; ties to the first), until the row is
// full. So one batch mixes many long books.
//
// What fits into a row is not cut (fewer truncations: arXiv:2404.10830): of the next documents of a
// source the longest comes that fits into what is left of the row. If none does, that rest is
// filled from the next source in the order of lags, or by a piece of a document that is longer than
// a row, whose tail waits in its source. Only where all are short, and none fits, is one cut.
//
// A source's documents come in an order reshuffled each epoch; an epoch ends only when all of its
// tokens have been handed out: before a new one begins, a row takes over an open tail of that
// source from the lane whose turn comes next. So a source with fewer documents than lanes is not
// read several times at once.
//
// Between stages row length, weights, lanes and the list of sources may change: tails of a source
// that is absent, or of a lane that is gone, wait in that source's cursor until it is back. No
// token is lost or repeated.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/packing.h"
#include "data/source.h"

namespace sala {

struct MixtureConfig {
  std::int64_t row_length = 0;  // T, tokens per row
  std::int64_t lanes = 64;
  std::uint64_t seed = 0;
  std::string stage;  // name of the stage; a state of another stage starts this one at row 0
};

class Mixture {
 public:
  // `state`: null at the start of a run, else what state() gave. The sources must outlive this.
  // A state that does not fit (other seed, changed files, damaged): std::runtime_error, one line.
  Mixture(const std::vector<Source>& sources, MixtureConfig config, const nlohmann::json& state);

  RowPlan next_row();
  std::int64_t rows_done() const { return row_; }  // in this stage
  nlohmann::json state() const;

 private:
  struct Tail {  // the rest of a document, from `offset`
    std::int64_t document;
    std::int64_t offset;
  };
  struct Cursor {
    std::string fingerprint;
    std::int64_t epoch = 0;
    std::int64_t position = 0;  // documents of the epoch's order already in `waiting` or beyond
    std::int64_t emitted = 0;   // tokens handed out in this stage
    std::deque<Tail> waiting;   // whole documents and tails, in the order in which they came
  };
  struct Lane {
    std::int32_t source;
    Tail tail;
  };
  struct Pick {
    std::int32_t source;
    Tail tail;
    bool is_filler;  // its source's turn has not come: what is left waits there, not in the lane
  };

  void load(const nlohmann::json& state);
  void load_cursors(const nlohmann::json& sources);
  void load_lanes(const nlohmann::json& lanes, bool same_stage);
  Tail checked_tail(const nlohmann::json& entry, const std::string& source) const;
  std::int32_t find_source(const std::string& name) const;  // -1: not in this stage
  std::vector<std::int32_t> most_lagging_first() const;
  std::int64_t left_of(std::int32_t source, const Tail& tail) const;
  bool has_waiting(std::int32_t source, std::size_t place);
  Tail take(std::int32_t source, std::size_t place);
  std::optional<Tail> take_fitting(std::int32_t source, std::int64_t room);
  Tail take_longest(std::int32_t source);
  Pick pick(std::int64_t room);
  std::optional<Tail> take_over(std::int32_t source);

  const std::vector<Source>& sources_;
  MixtureConfig config_;
  std::vector<double> shares_;             // weights, sum 1
  std::map<std::string, Cursor> cursors_;  // also of sources this stage does not use
  std::vector<Cursor*> active_;            // cursor of each source of the stage
  std::vector<std::optional<Lane>> lanes_;
  std::int64_t row_ = 0;
  std::int64_t total_ = 0;  // tokens handed out in this stage
};

}  // namespace sala
