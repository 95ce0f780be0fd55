// The prefetch thread behind data/loader.h.
#include "data/loader.h"

#include <stdexcept>
#include <utility>

#include "data/stores/patience.h"

namespace sala {
namespace {

std::vector<Source> open_sources(const std::vector<SourceSpec>& specs, const LoaderConfig& config) {
  if (config.rows_per_step < 1 || config.queue_steps < 1 || config.num_ranks < 1 ||
      config.rank < 0 || config.rank >= config.num_ranks) {
    throw std::runtime_error("data: expected rows per step, queue and ranks of 1 or more, found " +
                             std::to_string(config.rows_per_step) + " rows, queue " +
                             std::to_string(config.queue_steps) + ", rank " +
                             std::to_string(config.rank) + " of " +
                             std::to_string(config.num_ranks));
  }
  std::vector<Source> sources;
  sources.reserve(specs.size());
  const StoreCatalog unknown;
  const StoreCatalog& catalog = config.catalog ? *config.catalog : unknown;
  const auto open = std::make_shared<OpenStores>();
  for (const SourceSpec& spec : specs) {
    sources.emplace_back(spec, config.tokenizer, catalog, open);
  }
  return sources;
}

// A state saved within this stage counts its steps on; one of another stage starts at 0.
std::int64_t first_step(const nlohmann::json& state, const std::string& stage) {
  if (state.is_null() || state.at("stage").get<std::string>() != stage) return 0;
  const auto step = state.find("step");
  if (step == state.end() || !step->is_number_integer() || step->get<std::int64_t>() < 0) {
    throw std::runtime_error(
        "data: the saved data state is damaged (no `step`); resume from another "
        "checkpoint");
  }
  return step->get<std::int64_t>();
}

}  // namespace

std::pair<std::int64_t, std::int64_t> rows_of_rank(std::int64_t rows_per_step, int rank,
                                                   int num_ranks) {
  // floor(i * R / rows) = rank  <=>  ceil(rank * rows / R) <= i < ceil((rank + 1) * rows / R)
  const auto first = [&](std::int64_t r) {
    return (r * rows_per_step + num_ranks - 1) / num_ranks;
  };
  return {first(rank), first(rank + 1)};
}

Loader::Loader(const std::vector<SourceSpec>& sources, const LoaderConfig& config,
               const nlohmann::json& state)
    : config_(config),
      sources_(open_sources(sources, config)),
      mixture_(sources_, {config.row_length, config.lanes, config.seed, config.stage}, state),
      step_(first_step(state, config.stage)),
      state_(mixture_state()),
      thread_([this](const std::stop_token& stop) { read_ahead(stop); }) {}

Loader::~Loader() = default;  // ~jthread asks the thread to stop, wakes it and joins it

nlohmann::json Loader::mixture_state() const {
  nlohmann::json state = mixture_.state();
  state["step"] = step_;
  return state;
}

StepRows Loader::make_step() {
  StepRows step;
  step.step = step_++;
  step.first_row_of_stage = mixture_.rows_done();
  for (std::int64_t i = 0; i < config_.rows_per_step; ++i)
    step.plans.push_back(mixture_.next_row());
  for (const RowPlan& plan : step.plans) step.num_target_tokens += count_targets(sources_, plan);
  const auto [first, last] = rows_of_rank(config_.rows_per_step, config_.rank, config_.num_ranks);
  step.first_row = first;
  for (std::int64_t i = first; i < last; ++i) {
    step.rows.push_back(read_row(sources_, step.plans[static_cast<size_t>(i)]));
  }
  step.state_after = mixture_state();
  return step;
}

void Loader::read_ahead(const std::stop_token& stop) {
  end_patience_with(stop);
  try {
    while (!stop.stop_requested()) {
      StepRows step = make_step();
      std::unique_lock<std::mutex> lock(mutex_);
      const auto has_room = [&] {
        return static_cast<std::int64_t>(queue_.size()) < config_.queue_steps;
      };
      if (!changed_.wait(lock, stop, has_room)) return;
      queue_.push_back(std::move(step));
      changed_.notify_all();
    }
  } catch (const std::exception&) {
    std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::current_exception();
    changed_.notify_all();
  }
}

StepRows Loader::next() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return !queue_.empty() || error_; });
  if (queue_.empty()) std::rethrow_exception(error_);
  StepRows step = std::move(queue_.front());
  queue_.pop_front();
  changed_.notify_all();
  state_ = step.state_after;
  return step;
}

}  // namespace sala
