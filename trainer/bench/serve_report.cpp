// One line a row, and the same as JSON, rewritten after each.
#include "trainer/bench/serve_report.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/files/atomic_file.h"
#include "trainer/bench/report.h"
#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

std::string number(double value, const char* format) {
  return value > 0 ? fmt::format(fmt::runtime(format), value) : "-";
}

nlohmann::json json_of(const ServeRow& row) {
  nlohmann::json json = {{"model", row.model},
                         {"batch", row.batch},
                         {"tokens", row.tokens},
                         {"cache_bytes", row.cache_bytes}};
  if (row.first_token_s > 0) json["first_token_s"] = row.first_token_s;
  if (row.step_s > 0) {
    json["step_ms"] = row.step_s * 1e3;
    json["decode_tokens_per_s"] = double(row.batch) / row.step_s;
  }
  if (!row.note.empty()) json["note"] = row.note;
  return json;
}

}  // namespace

ServeReport::ServeReport(const std::string& device, const BenchOptions& options)
    : options_(options), device_(device) {
  print_line(fmt::format("{}, {}; {} layers x {}, {} query and {} KV heads x {}, random weights",
                         device, options.dtype, options.serve.layers, options.width,
                         options.heads.front(), options.kv_heads, options.head_size));
  print_line(fmt::format("{:<8}{:>6}{:>9}{:>13}{:>12}{:>10}{:>10}{:>12}", "model", "batch",
                         "tokens", "first token", "tokens/s", "step ms", "tokens/s", "cache GiB"));
  save();
}

void ServeReport::row(const ServeRow& r) {
  rows_.push_back(r);
  const double prefill = r.first_token_s > 0 ? double(r.tokens) / r.first_token_s : 0;
  const double decode = r.step_s > 0 ? double(r.batch) / r.step_s : 0;
  std::string line = fmt::format(
      "{:<8}{:>6}{:>9}{:>13}{:>12}{:>10}{:>10}{:>12.2f}", r.model, r.batch, format_count(r.tokens),
      number(r.first_token_s, "{:.3f} s"), number(prefill, "{:.0f}"),
      number(r.step_s * 1e3, "{:.2f}"), number(decode, "{:.1f}"), r.cache_bytes / (1 << 30));
  if (!r.note.empty()) line += "  " + r.note;
  print_line(line);
  save();
}

void ServeReport::gains(const std::string& slow, const std::string& fast) {
  for (const ServeRow& a : rows_) {
    for (const ServeRow& b : rows_) {
      if (a.model != slow || b.model != fast || a.batch != b.batch || a.tokens != b.tokens) {
        continue;
      }
      std::string text;
      if (a.first_token_s > 0 && b.first_token_s > 0) {
        text += fmt::format("first token {:.2f} times sooner", a.first_token_s / b.first_token_s);
      }
      if (a.step_s > 0 && b.step_s > 0) {
        text += fmt::format("{}decode {:.2f} times faster", text.empty() ? "" : ", ",
                            a.step_s / b.step_s);
      }
      if (!text.empty()) {
        print_line(fmt::format("{} against {}, batch {}, {} tokens: {}", fast, slow, a.batch,
                               format_count(a.tokens), text));
      }
    }
  }
}

void ServeReport::save() const {
  if (options_.json_file.empty()) return;
  nlohmann::json json = {
      {"machine",
       {{"device", device_}, {"dtype", options_.dtype}, {"most_gib", options_.serve.most_gib}}},
      {"shape",
       {{"layers", options_.serve.layers},
        {"width", options_.width},
        {"ffn", options_.ffn},
        {"vocab", options_.vocab},
        {"heads", options_.heads.front()},
        {"kv_heads", options_.kv_heads},
        {"head_size", options_.head_size}}},
      {"rows", nlohmann::json::array()}};
  for (const ServeRow& row : rows_) json["rows"].push_back(json_of(row));
  write_file_atomically(options_.json_file, json.dump(1) + "\n");
}

}  // namespace sala
