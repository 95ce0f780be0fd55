// Greedy answers to a set of prompts, scored by task and length.
#include "trainer/evaluation/tasks.h"

#include <memory>

#include "model/generate.h"
#include "trainer/charts/interval.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

// One task at one length.
struct Cell {
  std::string task;
  int64_t length;
  std::vector<int64_t> prompts;  // in the set
};

// Prompts of one cell that a rank answers in one call: `first` and so many of the cell's. The same
// for any number of ranks.
struct Chunk {
  size_t cell;
  size_t first, count;
};

std::vector<Cell> make_cells(const TaskSet& set, const EvaluateOptions& options, uint64_t seed) {
  std::vector<Cell> cells;
  for (const int64_t length : chosen_lengths(options, set.lengths())) {
    for (const std::string& task : chosen_tasks(options, set)) {
      Cell cell{task, length, set.prompts_of(task, length, options.task_items, seed)};
      if (!cell.prompts.empty()) cells.push_back(std::move(cell));
    }
  }
  return cells;
}

std::vector<Chunk> make_chunks(const std::vector<Cell>& cells, bool on_gpu) {
  std::vector<Chunk> chunks;
  for (size_t c = 0; c < cells.size(); ++c) {
    const auto most = static_cast<size_t>(
        std::max<int64_t>(1, tokens_answered_at_once(on_gpu) / cells[c].length));
    const size_t size = cells[c].prompts.size();
    for (size_t first = 0; first < size; first += most) {
      chunks.push_back({c, first, std::min(most, size - first)});
    }
  }
  return chunks;
}

class TaskEvaluation {
 public:
  TaskEvaluation(Run& run, const EvaluateOptions& options, Network& network)
      : run_(run), options_(options), network_(network) {
    run.world.together("reading tasks", [&] {
      set_ = std::make_unique<TaskSet>(run.recipe.data.tasks, run.tokenizer);
      cells_ = make_cells(*set_, options, static_cast<uint64_t>(run.recipe.run.seed));
    });
    chunks_ = make_chunks(cells_, run.world.device().is_cuda());
    scores_ = at::zeros({set_->size()}, at::kDouble);
  }

  void answer_all(const std::string& label) {
    // Ranks answer different prompts, so no lease can be shared among them.
    const std::unique_ptr<Lender> held = network_.parameters.held();
    const auto num_chunks = static_cast<int64_t>(chunks_.size());
    const ItemClock clock;
    for (int64_t first = 0; first < num_chunks; first += run_.world.size()) {
      if (run_.world.any(stop_requested())) throw Stopped{};
      run_.metrics.progress({.stage = label,
                             .unit = "groups of task prompts",
                             .step = first,
                             .num_steps = num_chunks,
                             .seconds_left = clock.seconds_left(first, num_chunks)});
      const int64_t mine = first + run_.world.rank();
      run_.world.together("tasks", [&] {
        if (mine < num_chunks) answer(chunks_[mine], *held);
      });
    }
    // Each prompt's score is known to one rank and 0 elsewhere: exact sums, in the same order.
    at::Tensor on_device = scores_.to(run_.world.device());
    run_.world.comm().all_reduce_sum(on_device);
    scores_ = on_device.cpu();
  }

  void tell(nlohmann::json& result) const {
    std::map<int64_t, std::pair<double, double>> means;  // by length: sum over tasks, tasks
    result["tasks"] = nlohmann::json::array();
    for (const Cell& cell : cells_) {
      double sum = 0;
      for (const int64_t prompt : cell.prompts) sum += scores_.const_data_ptr<double>()[prompt];
      const auto count = static_cast<double>(cell.prompts.size());
      const double score = sum / count;
      const Interval interval = wilson(sum, count);
      result["tasks"].push_back({{"task", cell.task},
                                 {"length", cell.length},
                                 {"score", score},
                                 {"low", *interval.low},
                                 {"high", *interval.high},
                                 {"count", cell.prompts.size()}});
      means[cell.length].first += score;
      means[cell.length].second += 1;
    }
    for (const auto& [length, mean] : means) {
      result["task_mean"][std::to_string(length)] = mean.first / mean.second;
    }
  }

 private:
  void answer(const Chunk& chunk, Lender& weights) {
    const Cell& cell = cells_[chunk.cell];
    const std::span<const int64_t> numbers =
        std::span(cell.prompts).subspan(chunk.first, chunk.count);
    GenerateOptions options;
    options.sparse = options_.sparse;
    options.device = run_.world.device();
    options.stop_ids = set_->stop_ids();
    options.max_new_tokens = 0;
    std::vector<std::vector<int64_t>> prompts;
    for (const int64_t number : numbers) {
      prompts.push_back(set_->ids(number));
      options.max_new_tokens = std::max(options.max_new_tokens, (*set_)[number].max_new_tokens);
    }
    options.cache_bytes = generation_cache_bytes(run_.world.device());
    options.graph = true;  // the leases of held weights wait for nothing
    auto out = generate_batch(network_.model, weights, prompts, options);
    for (size_t i = 0; i < numbers.size(); ++i) {
      const auto most = static_cast<size_t>((*set_)[numbers[i]].max_new_tokens);
      out[i].resize(std::min(out[i].size(), most));
      scores_.data_ptr<double>()[numbers[i]] =
          answer_score((*set_)[numbers[i]], set_->text(out[i]));
    }
  }

  Run& run_;
  const EvaluateOptions& options_;
  Network& network_;
  std::unique_ptr<TaskSet> set_;
  std::vector<Cell> cells_;
  std::vector<Chunk> chunks_;
  at::Tensor scores_;  // (prompts of the set) fp64; of those that were asked
};

}  // namespace

std::vector<std::string> chosen_tasks(const EvaluateOptions& options, const TaskSet& set) {
  std::vector<std::string> chosen;
  for (const std::string& task : set.tasks()) {
    for (const std::string& name : options.tasks) {
      if (name != "all" && name != task) continue;
      chosen.push_back(task);
      break;
    }
  }
  return chosen;
}

std::vector<int64_t> chosen_lengths(const EvaluateOptions& options,
                                    const std::map<int64_t, int64_t>& in_set) {
  std::vector<int64_t> chosen;
  const auto& wanted = options.task_lengths;
  for (const auto& [length, prompts] : in_set) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), length) != wanted.end()) {
      chosen.push_back(length);
    }
  }
  return chosen;
}

void evaluate_tasks(Run& run, const EvaluateOptions& options, const std::string& label,
                    Network& network, nlohmann::json& result) {
  TaskEvaluation evaluation(run, options, network);
  evaluation.answer_all(label);
  evaluation.tell(result);
}

}  // namespace sala
