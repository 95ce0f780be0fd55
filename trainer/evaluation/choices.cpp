// Contexts with choices as documents of packed passes, their log-likelihoods, and the shares that
// come of them.
#include "trainer/evaluation/choices.h"

#include <cmath>

#include "data/questions/choice_set.h"
#include "kernels/ops.h"
#include "kernels/to_device.h"
#include "model/forward.h"
#include "trainer/batches.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

// What is reported under one name: a set, or a set's task.
struct Asked {
  std::string name;
  std::vector<const ChoiceQuestion*> questions;
};

// Choices [begin, end) of all, as documents of one pass. The same for any number of ranks, so that
// every document is computed in the same company.
struct Group {
  size_t begin, end;
};

std::vector<Group> pack(const std::vector<const Choice*>& choices, int64_t most_tokens) {
  std::vector<Group> groups;
  int64_t room = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    const auto length =
        static_cast<int64_t>(choices[i]->context.size() + choices[i]->choice.size());
    if (groups.empty() || length > room) {
      groups.push_back({i, i});
      room = most_tokens;
    }
    groups.back().end = i + 1;
    room -= length;
  }
  return groups;
}

// Sums of log p over each row's targets. Undefined features: no rows, the head is leased all the
// same, as every rank does.
std::vector<double> row_sums(Network& network, const Batch& batch, const std::vector<Row>& rows,
                             bool sparse) {
  const at::NoGradGuard no_grad;
  const Model& model = network.model;
  const at::Tensor x = hidden(model, network.parameters, model.env(batch, sparse));
  const Lease head = network.parameters.lease(model.head_parts());
  if (rows.empty()) return {};
  std::vector<int64_t> places;  // of targets, in the batch
  int64_t start = 0;
  for (const Row& row : rows) {
    for (size_t t = 0; t < row.ids.size(); ++t) {
      if (row.loss_weight[t] != 0) places.push_back(start + static_cast<int64_t>(t));
    }
    start += static_cast<int64_t>(row.ids.size());
  }
  const at::Tensor index = queue_to(at::tensor(places, at::kLong), x.device());
  const at::Tensor weight = at::ones({index.size(0)}, batch.loss_weight.options());
  const VocabLoss value = linear_cross_entropy(x.index_select(0, index), model.head_weight(head),
                                               batch.targets.index_select(0, index), weight,
                                               model.config().logit_scale);
  const at::Tensor loss = value.loss_T.to(at::kDouble).cpu();
  const double* next = loss.const_data_ptr<double>();
  std::vector<double> sums;
  for (const Row& row : rows) {
    double sum = 0;
    for (const float w : row.loss_weight) {
      if (w != 0) sum -= *next++;
    }
    sums.push_back(sum);
  }
  return sums;
}

// log p(choice | context) of each choice.
std::vector<double> log_likelihoods(Run& run, const EvaluateOptions& options,
                                    const std::string& label, Network& network,
                                    const std::vector<const Choice*>& choices) {
  const at::Device device = run.world.device();
  constexpr int64_t kCpuTokens = 1024;
  const auto groups = pack(choices, device.is_cuda() ? kEvaluationTokens : kCpuTokens);
  at::Tensor all = at::zeros({static_cast<int64_t>(choices.size())}, at::kDouble);
  const auto num_groups = static_cast<int64_t>(groups.size());
  const ItemClock clock;
  for (int64_t first = 0; first < num_groups; first += run.world.size()) {
    if (run.world.any(stop_requested())) throw Stopped{};
    run.metrics.progress({.stage = label,
                          .unit = "passes of multiple choice",
                          .step = first,
                          .num_steps = num_groups,
                          .seconds_left = clock.seconds_left(first, num_groups)});
    const int64_t mine = first + run.world.rank();
    const Group group = mine < num_groups ? groups[mine] : Group{0, 0};
    std::vector<Row> rows;
    for (size_t i = group.begin; i < group.end; ++i) rows.push_back(choice_row(*choices[i]));
    const Batch batch = rows.empty() ? idle_batch({}, device) : make_batch(rows, {}, device);
    const std::vector<double> sums = row_sums(network, batch, rows, options.sparse);
    std::copy(sums.begin(), sums.end(), all.data_ptr<double>() + group.begin);
  }
  all = all.to(device);
  run.world.comm().all_reduce_sum(all);  // of what one rank knows and the others have as 0
  all = all.cpu();
  return {all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel()};
}

// Share of `hits` in `count` and its standard error, as lm-evaluation-harness's mean_stderr.
nlohmann::json share(double hits, double count) {
  const double p = hits / count;
  return {p, count < 2 ? 0 : std::sqrt(p * (1 - p) / (count - 1))};
}

nlohmann::json asked_result(const Asked& asked, const double* log_likelihood) {
  double hits = 0, hits_norm = 0, chance = 0;
  for (const ChoiceQuestion* question : asked.questions) {
    const size_t n = question->choices.size();
    const ChoicePicks picks = pick_choices(*question, {log_likelihood, log_likelihood + n});
    hits += picks.by_sum == question->answer ? 1 : 0;
    hits_norm += picks.by_char == question->answer ? 1 : 0;
    chance += 1.0 / static_cast<double>(n);
    log_likelihood += n;
  }
  const auto count = static_cast<double>(asked.questions.size());
  const nlohmann::json acc = share(hits, count), acc_norm = share(hits_norm, count);
  return {{"acc", acc[0]},
          {"acc_se", acc[1]},
          {"acc_norm", acc_norm[0]},
          {"acc_norm_se", acc_norm[1]},
          {"count", static_cast<int64_t>(count)},
          {"chance", chance / count}};
}

std::vector<ChoiceSet> read_sets(Run& run, const std::vector<std::string>& names) {
  std::vector<ChoiceSet> sets;
  run.world.together("reading multiple-choice sets", [&] {
    for (const std::string& name : names) {
      for (const std::string& path : run.recipe.data.choices) {
        if (choice_set_name(path) == name) sets.emplace_back(path, run.tokenizer);
      }
    }
  });
  return sets;
}

}  // namespace

void evaluate_choices(Run& run, const EvaluateOptions& options, const std::string& label,
                      Network& network, nlohmann::json& result) {
  const std::vector<ChoiceSet> sets = read_sets(run, options.choices);
  std::vector<Asked> all_asked;
  std::vector<const Choice*> choices;
  for (size_t s = 0; s < sets.size(); ++s) {
    const std::vector<std::string> tasks = sets[s].tasks();
    for (const std::string& task : tasks) {
      const std::string& set = options.choices[s];
      all_asked.push_back({tasks.size() == 1 ? set : set + "/" + task, {}});
      for (const int64_t q : sets[s].questions_of(task, options.choices_items,
                                                  static_cast<uint64_t>(run.recipe.run.seed))) {
        all_asked.back().questions.push_back(&sets[s][q]);
        for (const Choice& choice : sets[s][q].choices) choices.push_back(&choice);
      }
    }
  }
  const auto values = log_likelihoods(run, options, label, network, choices);
  size_t at = 0;
  for (const Asked& asked : all_asked) {
    result["choices"][asked.name] = asked_result(asked, values.data() + at);
    for (const ChoiceQuestion* question : asked.questions) at += question->choices.size();
  }
}

}  // namespace sala
