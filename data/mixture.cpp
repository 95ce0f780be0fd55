// Planning rows, and the state that resumes them.
#include "data/mixture.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <utility>

#include "data/shuffle.h"

namespace sala {
namespace {

// Names data/shuffle.h's permutation in saved states: a position means nothing in another one.
const char* const kOrder = "feistel";

constexpr std::size_t kLookAhead = 64;  // documents of a source among which one that fits is sought

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("data: " + what); }

}  // namespace

Mixture::Mixture(const std::vector<Source>& sources, MixtureConfig config,
                 const nlohmann::json& state)
    : sources_(sources), config_(std::move(config)) {
  if (sources_.empty()) fail("the stage has no source; give it at least one");
  if (config_.row_length < 1) {
    fail("row length must be 1 or more, found " + std::to_string(config_.row_length));
  }
  if (config_.lanes < 1) fail("lanes must be 1 or more, found " + std::to_string(config_.lanes));
  double sum = 0;
  std::set<std::string> names;
  for (const Source& source : sources_) {
    if (!names.insert(source.name()).second) fail("source `" + source.name() + "` is listed twice");
    sum += source.weight();
  }
  for (const Source& source : sources_) shares_.push_back(source.weight() / sum);
  lanes_.resize(static_cast<size_t>(config_.lanes));
  try {
    load(state);
  } catch (const nlohmann::json::exception& error) {
    fail(std::string("the saved data state is damaged (") + error.what() +
         "); resume from another checkpoint");
  }
}

void Mixture::load(const nlohmann::json& state) {
  if (!state.is_null()) {
    if (state.value("order", "") != kOrder) {
      fail(std::string("the saved data state counts documents in another order than this program "
                       "reads them (expected order ") +
           kOrder + "); continue with the program that saved it, or start a new run");
    }
    if (state.at("seed").get<std::uint64_t>() != config_.seed) {
      fail("the saved data state has seed " +
           std::to_string(state.at("seed").get<std::uint64_t>()) + ", the recipe " +
           std::to_string(config_.seed) + "; keep the seed or start a new run");
    }
    load_cursors(state.at("sources"));
  }
  for (const Source& source : sources_) {
    Cursor& cursor = cursors_[source.name()];
    if (cursor.fingerprint.empty()) cursor.fingerprint = source.fingerprint();
    if (cursor.fingerprint != source.fingerprint()) {
      fail("the files of source `" + source.name() + "` (" + source.first_path() +
           " ...) are not those the run began with; restore them or give the source a new name");
    }
    if (cursor.position < 0 || cursor.position > source.num_documents() || cursor.epoch < 0) {
      fail("the saved cursor of source `" + source.name() + "` is outside its documents");
    }
    for (const Tail& tail : cursor.waiting) {
      static_cast<void>(checked_tail({tail.document, tail.offset}, source.name()));
    }
    active_.push_back(&cursor);
  }
  if (state.is_null()) return;
  const bool same_stage = state.at("stage").get<std::string>() == config_.stage;
  load_lanes(state.at("lanes"), same_stage);
  if (same_stage) {
    row_ = state.at("row").get<std::int64_t>();
    for (const Cursor* cursor : active_) total_ += cursor->emitted;
  } else {
    for (auto& [name, cursor] : cursors_) cursor.emitted = 0;
  }
}

void Mixture::load_cursors(const nlohmann::json& sources) {
  for (const auto& [name, saved] : sources.items()) {
    Cursor& cursor = cursors_[name];
    cursor.fingerprint = saved.at("fingerprint").get<std::string>();
    cursor.epoch = saved.at("epoch").get<std::int64_t>();
    cursor.position = saved.at("position").get<std::int64_t>();
    cursor.emitted = saved.at("emitted").get<std::int64_t>();
    for (const auto& tail : saved.at("parked")) {
      cursor.waiting.push_back({tail.at(0).get<std::int64_t>(), tail.at(1).get<std::int64_t>()});
    }
  }
}

// Lanes are saved as [lane, source name, document, offset], empty ones left out.
void Mixture::load_lanes(const nlohmann::json& lanes, bool same_stage) {
  for (const auto& saved : lanes) {
    const auto lane = saved.at(0).get<std::int64_t>();
    const auto name = saved.at(1).get<std::string>();
    const Tail tail = checked_tail({saved.at(2), saved.at(3)}, name);
    const std::int32_t source = find_source(name);
    if (source >= 0 && lane >= 0 && lane < config_.lanes) {
      lanes_[static_cast<size_t>(lane)] = Lane{source, tail};
    } else if (same_stage && source < 0) {
      fail("source `" + name + "` is missing, but stage `" + config_.stage + "` was begun with it");
    } else if (const auto cursor = cursors_.find(name); cursor != cursors_.end()) {
      cursor->second.waiting.push_back(tail);
    } else {
      fail("the saved data state is damaged (lane of unknown source `" + name +
           "`); resume from another checkpoint");
    }
  }
}

Mixture::Tail Mixture::checked_tail(const nlohmann::json& entry, const std::string& name) const {
  const Tail tail{entry.at(0).get<std::int64_t>(), entry.at(1).get<std::int64_t>()};
  const std::int32_t source = find_source(name);
  if (source < 0) return tail;  // checked when its source is back
  const Source& owner = sources_[static_cast<size_t>(source)];
  if (tail.document < 0 || tail.document >= owner.num_documents() || tail.offset < 0 ||
      tail.offset >= owner.document_length(tail.document)) {
    fail("the saved state opens document " + std::to_string(tail.document) + " of source `" + name +
         "` at token " + std::to_string(tail.offset) + ", which does not exist");
  }
  return tail;
}

std::int32_t Mixture::find_source(const std::string& name) const {
  for (size_t s = 0; s < sources_.size(); ++s) {
    if (sources_[s].name() == name) return static_cast<std::int32_t>(s);
  }
  return -1;
}

std::vector<std::int32_t> Mixture::most_lagging_first() const {
  std::vector<double> lags;
  std::vector<std::int32_t> order;
  for (size_t s = 0; s < active_.size(); ++s) {
    lags.push_back(shares_[s] * static_cast<double>(total_) -
                   static_cast<double>(active_[s]->emitted));
    order.push_back(static_cast<std::int32_t>(s));
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return lags[static_cast<size_t>(a)] > lags[static_cast<size_t>(b)];
  });
  return order;
}

// The open tail of this source whose lane has its turn next. The current lane holds none.
std::optional<Mixture::Tail> Mixture::take_over(std::int32_t source) {
  for (std::int64_t step = 1; step < config_.lanes; ++step) {
    auto& lane = lanes_[static_cast<size_t>((row_ + step) % config_.lanes)];
    if (lane && lane->source == source) {
      const Tail tail = lane->tail;
      lane.reset();
      return tail;
    }
  }
  return std::nullopt;
}

std::int64_t Mixture::left_of(std::int32_t source, const Tail& tail) const {
  return sources_[static_cast<size_t>(source)].document_length(tail.document) - tail.offset;
}

// Whether something waits at this place, after fetching the epoch's next documents up to it. There
// always is a first: a new epoch begins when nothing is left of the old one.
bool Mixture::has_waiting(std::int32_t source, std::size_t place) {
  Cursor& cursor = *active_[static_cast<size_t>(source)];
  const Source& owner = sources_[static_cast<size_t>(source)];
  while (place >= cursor.waiting.size()) {
    if (cursor.position == owner.num_documents()) {
      if (!cursor.waiting.empty()) return false;
      if (const auto tail = take_over(source)) {
        cursor.waiting.push_back(*tail);
        continue;
      }
      ++cursor.epoch;
      cursor.position = 0;
    }
    const EpochOrder order(config_.seed, owner.name(), cursor.epoch, owner.num_documents());
    cursor.waiting.push_back({order.document(cursor.position++), 0});
  }
  return true;
}

Mixture::Tail Mixture::take(std::int32_t source, std::size_t place) {
  auto& waiting = active_[static_cast<size_t>(source)]->waiting;
  const Tail tail = waiting[place];
  waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(place));
  return tail;
}

// The first in line if it is longer than a row, else the longest that fits into `room`, else the
// first that is longer than a row: that one is cut wherever it begins.
std::optional<Mixture::Tail> Mixture::take_fitting(std::int32_t source, std::int64_t room) {
  const auto& waiting = active_[static_cast<size_t>(source)]->waiting;
  std::optional<std::size_t> best, longer_than_a_row;
  std::int64_t best_left = 0;
  for (std::size_t place = 0; place < kLookAhead && has_waiting(source, place); ++place) {
    const std::int64_t left = left_of(source, waiting[place]);
    if (left > config_.row_length) {
      if (place == 0) return take(source, 0);
      if (!longer_than_a_row) longer_than_a_row = place;
    } else if (left <= room && left > best_left) {
      best = place;
      best_left = left;
    }
    if (best_left == room) break;
  }
  if (!best) best = longer_than_a_row;
  if (!best) return std::nullopt;
  return take(source, *best);
}

Mixture::Tail Mixture::take_longest(std::int32_t source) {
  const auto& waiting = active_[static_cast<size_t>(source)]->waiting;
  std::size_t longest = 0;
  for (std::size_t place = 1; place < kLookAhead && has_waiting(source, place); ++place) {
    if (left_of(source, waiting[place]) > left_of(source, waiting[longest])) longest = place;
  }
  return take(source, longest);
}

// What comes next in a row with `room` tokens left, by the rules of mixture.h.
Mixture::Pick Mixture::pick(std::int64_t room) {
  const std::vector<std::int32_t> sources = most_lagging_first();
  for (const std::int32_t source : sources) {
    if (const auto tail = take_fitting(source, room)) {
      return {source, *tail, /*is_filler=*/source != sources.front()};
    }
  }
  return {sources.front(), take_longest(sources.front()), /*is_filler=*/false};
}

RowPlan Mixture::next_row() {
  RowPlan plan;
  auto& lane = lanes_[static_cast<size_t>(row_ % config_.lanes)];
  for (std::int64_t room = config_.row_length; room > 0;) {
    const Pick next = lane ? Pick{lane->source, lane->tail, false} : pick(room);
    const auto& [source, tail, is_filler] = next;
    lane.reset();
    const std::int64_t left = left_of(source, tail);
    const std::int64_t count = std::min(room, left);
    plan.push_back({source, tail.document, tail.offset, count, count == left});
    Cursor& cursor = *active_[static_cast<size_t>(source)];
    if (count < left) {
      const Tail rest{tail.document, tail.offset + count};
      if (is_filler) {
        cursor.waiting.push_front(rest);
      } else {
        lane = Lane{source, rest};
      }
    }
    cursor.emitted += count;
    total_ += count;
    room -= count;
  }
  ++row_;
  return plan;
}

nlohmann::json Mixture::state() const {
  nlohmann::json sources = nlohmann::json::object();
  for (const auto& [name, cursor] : cursors_) {
    nlohmann::json waiting = nlohmann::json::array();
    for (const Tail& tail : cursor.waiting) waiting.push_back({tail.document, tail.offset});
    sources[name] = {{"fingerprint", cursor.fingerprint},
                     {"epoch", cursor.epoch},
                     {"position", cursor.position},
                     {"emitted", cursor.emitted},
                     {"parked", waiting}};
  }
  nlohmann::json lanes = nlohmann::json::array();
  for (size_t i = 0; i < lanes_.size(); ++i) {
    if (!lanes_[i]) continue;
    const Lane& lane = *lanes_[i];
    lanes.push_back({i, sources_[static_cast<size_t>(lane.source)].name(), lane.tail.document,
                     lane.tail.offset});
  }
  return {{"stage", config_.stage}, {"seed", config_.seed}, {"order", kOrder}, {"row", row_},
          {"sources", sources},     {"lanes", lanes}};
}

}  // namespace sala
