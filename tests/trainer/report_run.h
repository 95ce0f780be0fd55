// The metrics of a run that has everything: each kind of event, each kind of measurement, names
// that would be markup.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sala::test {

inline constexpr const char* kHostile = R"(<b>&"'</b><script>alert(1)</script>)";

inline nlohmann::json evaluation_of(const std::string& label, bool teacher, double loss,
                                    double rate) {
  nlohmann::json source = {{"loss", loss},
                           {"loss_se", 0.02},
                           {"tokens", 4096},
                           {"by_position",
                            {{{"from", 0}, {"to", 128}, {"loss", loss + 0.5}},
                             {{"from", 128}, {"to", 256}, {"loss", loss}}}}};
  if (!teacher) {
    source.update({{"kl", 0.345}, {"kl_se", 0.005}, {"top1", 0.8125}, {"top1_se", 0.001}});
  }
  nlohmann::json e = {{"event", "evaluate"},
                      {"label", label},
                      {"model", teacher ? "teacher" : "student"},
                      {"options", {{"row_length", 4096}}},
                      {"sources", {{"textbooks", source}, {kHostile, source}}}};
  for (const int64_t length : {1024, 16384}) {
    for (const double depth : {0.1, 0.9}) {
      e["needles"].push_back(
          {{"length", length}, {"depth", depth}, {"hits", std::round(25 * rate)}, {"count", 25}});
    }
    e["needle_rate"][std::to_string(length)] = rate;
    e["task_mean"][std::to_string(length)] = 0.6 * rate;
    e["tasks"].push_back({{"task", std::string("niah ") + kHostile},
                          {"length", length},
                          {"score", 0.6 * rate},
                          {"low", 0.5 * rate},
                          {"high", 0.7 * rate},
                          {"count", 50}});
  }
  e["choices"]["arc_easy"] = {{"acc", 0.25 + 0.3 * rate}, {"acc_se", 0.01}, {"acc_norm", 0.61},
                              {"acc_norm_se", 0.01},      {"count", 2376},  {"chance", 0.25}};
  return e;
}

inline void add_steps(std::vector<nlohmann::json>& lines, const std::string& stage, int num_steps,
                      double& tokens) {
  for (int step = 1; step <= num_steps; ++step) {
    tokens += 4096;
    const bool skipped = step == 3;
    nlohmann::json line = {{"event", "step"},
                           {"stage", stage},
                           {"step", step},
                           {"loss", skipped ? nlohmann::json() : nlohmann::json(2 + 1.0 / step)},
                           {"finite", !skipped},
                           {"lr", 1e-3},
                           {"tokens", tokens},
                           {"tokens_per_second", 35'600},
                           {"mfu", 0.279},
                           {"seconds", 0.5},
                           {"memory_bytes", 25.1e9},
                           {"skew_seconds", 0.01},
                           {"spent", {{"data", 0.1}, {"forward", 1.0}, {"backward", 2.9}}}};
    if (stage == "align") {
      line.update({{"layer_losses", {0.5, 0.25, 0.125}}, {"layer_grad_norms", {1.0, 2.0, 0.5}}});
    } else {
      line.update({{"kl", 0.3}, {"ce", 2.5}, {"grad_norm", 0.8}, {"grad_norms", {{"head", 0.1}}}});
    }
    if (step == 1) line["parameters"] = {{"trainable", 134'500'000}, {"frozen", 28'300'000}};
    lines.push_back(line);
  }
}

// In the order in which a run writes them; "time" is a second a line.
inline std::vector<nlohmann::json> whole_run() {
  double tokens = 0;
  std::vector<nlohmann::json> lines = {
      {{"event", "start"},
       {"ranks", 2},
       {"device", std::string("GPU ") + kHostile},
       {"peak_flops", 989e12},
       {"command", "sala-train recipes/a.yaml"},
       {"program", "sala-train 0.1"},
       {"source",
        {{"folder", std::string("models/") + kHostile},
         {"family", "llama"},
         {"layers", 3},
         {"width", 64},
         {"parameters", 134'515'008}}},
       {"stages",
        {{{"name", "align"}, {"type", "align"}, {"steps", 8}, {"flops", 1e12}},
         {{"name", "swap"}, {"type", "swap"}, {"steps", 1}, {"flops", 1e9}},
         {{"name", "distill"}, {"type", "distill"}, {"steps", 8}, {"flops", 1e12}},
         {{"name", "train"}, {"type", "train"}, {"steps", 8}, {"flops", 1e12}}}}}};
  add_steps(lines, "align", 8, tokens);
  nlohmann::json layers;
  for (int l = 0; l < 3; ++l) {
    layers.push_back({{"layer", l}, {"score", 1.5 + l}, {"se", 0.25}, {"plain", 0.1}});
  }
  lines.push_back({{"event", "scores"},
                   {"stage", "score"},
                   {"method", "kl"},
                   {"documents", 64},
                   {"layers", layers},
                   {"within_noise", true},
                   {"note", std::string("layers 1 and 2 are within noise ") + kHostile},
                   {"methods", {{{"method", "other"}, {"layers", layers}, {"kept", {0}}}}}});
  lines.push_back({{"event", "swap"}, {"stage", "swap"}, {"kept", {0, 2}}});
  lines.push_back({{"event", "origin"},
                   {"stage", "swap"},
                   {"tensors",
                    {{{"tensor", "layers.0.q"}, {"from", "source"}},
                     {{"tensor", "layers.1.q"}, {"from", "source"}},
                     {{"tensor", kHostile}, {"from", kHostile}}}}});
  lines.push_back(evaluation_of("teacher", true, 2.679, 1.0));
  lines.push_back(evaluation_of("swap", false, 4.481, 0.0));
  add_steps(lines, "distill", 8, tokens);
  nlohmann::json inside = evaluation_of("distill", false, 3.1, 0.5);
  inside.update({{"step", 8}, {"stage", "distill"}, {"tokens", tokens}});
  lines.push_back(inside);
  lines.push_back({{"event", "checkpoint"},
                   {"stage", "train"},
                   {"folder", "x"},
                   {"stall_seconds", 0.3},
                   {"write_seconds", 4.5}});
  add_steps(lines, "train", 8, tokens);
  lines.push_back({{"event", "spike"},
                   {"stage", "train"},
                   {"step", 8},
                   {"tokens", tokens},
                   {"text", std::string("stage train step 8: spike: loss 9 ") + kHostile}});
  lines.push_back({{"event", "verdict"}, {"stage", "train"}, {"text", kHostile}});
  lines.push_back(evaluation_of("evaluate_trained", false, 2.87, 0.92));
  lines.push_back({{"event", "export"}, {"folder", kHostile}, {"notes", {kHostile}}});
  lines.push_back({{"event", "end"}, {"tokens", tokens}});
  double time = 1.7e9;
  for (nlohmann::json& line : lines) line["time"] = time += 1;
  return lines;
}

}  // namespace sala::test
