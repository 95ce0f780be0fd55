// Scores to metrics, log and HDF5.
#include "trainer/scores/record.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/files/hdf5_file.h"
#include "trainer/journal/own_files.h"

namespace sala {

namespace {

std::string line_of(const nlohmann::json& layer, const std::string& method) {
  const auto number = [&](const char* key) { return layer.at(key).get<double>(); };
  std::string line =
      fmt::format("layer {:3}  score {:7.3f}", layer.at("layer").get<int64_t>(), number("score"));
  line += fmt::format(" ± {:.3f}", number("se"));
  if (method == "kl") {
    line += fmt::format("  KL {:.5f}, recall {:.5f}", number("plain"), number("recall"));
  } else if (method == "halo") {
    line += fmt::format("  next token {:.4f}, recall {:.4f}", number("plain"), number("recall"));
  } else if (method == "gates") {
    line += fmt::format("  gate {:.3f}{}", number("gate"),
                        layer.at("forced").get<bool>() ? " (forced)" : "");
  }
  return line;
}

}  // namespace

void tell_scores(Run& run) {
  nlohmann::json event = run.scores;
  event["event"] = "scores";
  run.metrics.event(event);
  const auto method = run.scores.at("method").get<std::string>();
  const bool measured = method != "uniform" && method != "file";
  for (const auto& layer : run.scores.at("layers")) {
    if (measured) run.metrics.note(line_of(layer, method));
  }
  const auto kept = run.scores.at("kept").get<std::vector<int64_t>>();
  const auto note = run.scores.at("note").get<std::string>();
  if (kept.empty() || note.empty()) return;
  run.metrics.note(fmt::format("{} chooses layers {}{}: {}", method, fmt::join(kept, ", "),
                               run.scores.at("within_noise").get<bool>() ? ", within noise" : "",
                               note));
}

void write_scores(const Run& run) {
  Hdf5File file = Hdf5File::create(run.folder + "/" + kScoresFile);
  file.set_attribute("method", run.scores.at("method").get<std::string>());
  for (const char* key : {"score", "plain", "recall", "se", "kept_share", "gate"}) {
    std::vector<double> values;
    for (const auto& layer : run.scores.at("layers")) values.push_back(layer.value(key, 0.0));
    file.write_all(key, values);
  }
  file.commit();
}

}  // namespace sala
