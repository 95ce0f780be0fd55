// Reading and choosing behind data/questions/choice_set.h.
#include "data/questions/choice_set.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "data/questions/item_file.h"
#include "data/shuffle.h"

namespace sala {
namespace {

ChoiceQuestion read_question(const ItemFile& file, const nlohmann::json& item, std::int64_t index) {
  const std::string where = "item " + std::to_string(index);
  ChoiceQuestion question;
  question.task = item.value("task", "");
  question.answer = item.at("answer").get<std::int64_t>();
  const auto& contexts = item.at("contexts");
  const auto& choices = item.at("choices");
  if (!item.contains("choice_chars")) {
    file.fail(where +
              " lacks `choice_chars`: it was made by an earlier data/prepare; run "
              "`data/prepare choices` again");
  }
  const auto chars = item.at("choice_chars").get<std::vector<std::int64_t>>();
  if (choices.size() < 2 || contexts.size() != choices.size() || chars.size() != choices.size()) {
    file.fail(where +
              ": expected two or more `choices` and as many `contexts` and "
              "`choice_chars`, found " +
              std::to_string(choices.size()) + ", " + std::to_string(contexts.size()) + " and " +
              std::to_string(chars.size()) + "; run data/prepare again");
  }
  if (question.answer < 0 || question.answer >= static_cast<std::int64_t>(choices.size())) {
    file.fail(where + ": `answer` is " + std::to_string(question.answer) + ", expected one of " +
              std::to_string(choices.size()) + " choices; run data/prepare again");
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    if (chars[i] < 1) {
      file.fail(where + ", `choice_chars`: expected 1 or more, found " + std::to_string(chars[i]) +
                "; run data/prepare again");
    }
    question.choices.push_back({file.ids(contexts[i], where + ", `contexts`"),
                                file.ids(choices[i], where + ", `choices`"), chars[i]});
  }
  return question;
}

}  // namespace

ChoiceSet::ChoiceSet(const std::string& path, const TokenizerIdentity& expected) : path_(path) {
  read_item_file(path, "sala-choices", "multiple-choice set", expected,
                 [&](const ItemFile& file, const nlohmann::json& item, std::int64_t index) {
                   questions_.push_back(read_question(file, item, index));
                 });
}

std::vector<std::string> ChoiceSet::tasks() const {
  std::set<std::string> names;
  for (const ChoiceQuestion& question : questions_) names.insert(question.task);
  return {names.begin(), names.end()};
}

std::vector<std::int64_t> ChoiceSet::questions_of(const std::string& task, std::int64_t most,
                                                  std::uint64_t seed) const {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < size(); ++i) {
    if (questions_[i].task == task) all.push_back(i);
  }
  const auto count = static_cast<std::int64_t>(all.size());
  if (count <= most) return all;
  const EpochOrder order(seed, task, 0, count);
  std::vector<std::int64_t> chosen;
  for (std::int64_t i = 0; i < most; ++i) chosen.push_back(all[order.document(i)]);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

std::int64_t ChoiceSet::longest_document() const {
  size_t longest = 0;
  for (const ChoiceQuestion& question : questions_) {
    for (const Choice& c : question.choices) {
      longest = std::max(longest, c.context.size() + c.choice.size());
    }
  }
  return static_cast<std::int64_t>(longest);
}

std::string choice_set_name(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  const size_t dot = name.find_last_of('.');
  return dot == std::string::npos || dot == 0 ? name : name.substr(0, dot);
}

Row choice_row(const Choice& choice) {
  Row row;
  row.ids = choice.context;
  row.ids.insert(row.ids.end(), choice.choice.begin(), choice.choice.end() - 1);
  row.targets.assign(row.ids.size(), 0);
  row.loss_weight.assign(row.ids.size(), 0.0F);
  for (size_t i = 0; i < choice.choice.size(); ++i) {
    const size_t t = choice.context.size() - 1 + i;
    row.targets[t] = choice.choice[i];
    row.loss_weight[t] = 1.0F;
  }
  row.position.resize(row.ids.size());
  std::iota(row.position.begin(), row.position.end(), 0);
  row.doc_starts = {0};
  row.source_of_doc = {0};
  return row;
}

ChoicePicks pick_choices(const ChoiceQuestion& question,
                         const std::vector<double>& log_likelihoods) {
  ChoicePicks picks;
  const auto per_char = [&](size_t i) {
    return log_likelihoods[i] / static_cast<double>(question.choices[i].num_chars);
  };
  for (size_t i = 1; i < log_likelihoods.size(); ++i) {
    if (log_likelihoods[i] > log_likelihoods[picks.by_sum]) picks.by_sum = static_cast<int64_t>(i);
    if (per_char(i) > per_char(picks.by_char)) picks.by_char = static_cast<int64_t>(i);
  }
  return picks;
}

}  // namespace sala
