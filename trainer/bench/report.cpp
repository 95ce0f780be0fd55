// The table's columns and the JSON's keys.
#include "trainer/bench/report.h"

#include <fmt/format.h>

#include <array>
#include <cstdio>

#include "data/files/atomic_file.h"
#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

const char* dtype_text(at::ScalarType dtype) { return dtype == at::kBFloat16 ? "bf16" : "fp32"; }

// Four digits, whatever the size: 0.01234, 1.234, 123.4.
std::string digits_text(double value) {
  for (const auto& [limit, places] : {std::pair{0.1, 5}, {1.0, 4}, {10.0, 3}, {100.0, 2}}) {
    if (value < limit) return fmt::format("{:.{}f}", value, places);
  }
  return fmt::format("{:.1f}", value);
}

std::string memory_text(double num_bytes) {
  return num_bytes > 0 ? fmt::format("{:.2f}", num_bytes / (1 << 30)) : "-";
}

std::string left_columns(const BenchOp& op, const std::string& shape) {
  return fmt::format("{:<21}{:<9}{:<20}", op.name, op.pass, shape);
}

std::string right_columns(const std::array<std::string, 7>& c) {
  return fmt::format("{:>9}{:>11}{:>8}{:>8}{:>10}{:>8}{:>9}", c[0], c[1], c[2], c[3], c[4], c[5],
                     c[6]);
}

nlohmann::json machine_json(const BenchMachine& m) {
  return {{"device", m.device},
          {"dtype", dtype_text(m.dtype)},
          {"copy_gb_per_s", m.copy_bytes_per_s / 1e9},
          {"gemm_tflops", m.gemm_flops_per_s / 1e12},
          {"gemm_size", m.gemm_size}};
}

nlohmann::json place_json(const BenchOp& op, const BenchShape& s) {
  nlohmann::json place = {{"op", op.name}, {"pass", op.pass}, {"shape", op.shape(s)}};
  if (op.sweep != BenchSweep::kOnce) {
    place["tokens"] = s.tokens;
    place["documents"] = s.documents;
  }
  if (op.sweep == BenchSweep::kHeads) place["heads"] = s.heads;
  return place;
}

}  // namespace

void print_line(const std::string& text) {
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

BenchReport::BenchReport(const BenchMachine& machine, std::string json_file)
    : machine_(machine),
      json_file_(std::move(json_file)),
      json_{{"machine", machine_json(machine)},
            {"rows", nlohmann::json::array()},
            {"skipped", nlohmann::json::array()},
            {"left_out", nlohmann::json::array()}} {
  print_line(fmt::format("{}, {}", machine.device, dtype_text(machine.dtype)));
  print_line(
      fmt::format("copy  {:>8} GB/s, read + written", digits_text(machine.copy_bytes_per_s / 1e9)));
  print_line(fmt::format("GEMM  {:>8} TFLOP/s, n = {}\n",
                         digits_text(machine.gemm_flops_per_s / 1e12), machine.gemm_size));
  print_line(fmt::format("{:<21}{:<9}{:<20}", "op", "pass", "shape") +
             right_columns({"ms", "MB", "GB/s", "% copy", "TFLOP/s", "% GEMM", "GiB"}));
  save();
}

void BenchReport::row(const BenchOp& op, const BenchShape& shape, const BenchTime& time) {
  const double bytes = op.bytes(shape), seconds = time.ms / 1e3;
  const double copy_frac = bytes / seconds / machine_.copy_bytes_per_s;
  nlohmann::json row = place_json(op, shape);
  row.update({{"ms", time.ms},
              {"repeats", time.repeats},
              {"bytes", bytes},
              {"gb_per_s", bytes / seconds / 1e9},
              {"copy_frac", copy_frac},
              {"peak_bytes", time.peak_bytes}});
  std::array<std::string, 7> columns = {digits_text(time.ms),
                                        digits_text(bytes / 1e6),
                                        digits_text(bytes / seconds / 1e9),
                                        fmt::format("{:.1f}", 100 * copy_frac),
                                        "-",
                                        "-",
                                        memory_text(time.peak_bytes)};
  if (op.flops) {
    const double flops = op.flops(shape);
    const double gemm_frac = flops / seconds / machine_.gemm_flops_per_s;
    row.update({{"flops", flops}, {"tflops", flops / seconds / 1e12}, {"gemm_frac", gemm_frac}});
    columns[4] = digits_text(flops / seconds / 1e12);
    columns[5] = fmt::format("{:.1f}", 100 * gemm_frac);
  }
  json_["rows"].push_back(row);
  print_line(left_columns(op, op.shape(shape)) + right_columns(columns));
  save();
}

void BenchReport::skipped(const BenchOp& op, const BenchShape& shape, const std::string& reason) {
  nlohmann::json row = place_json(op, shape);
  row["reason"] = reason;
  json_["skipped"].push_back(row);
  print_line(left_columns(op, op.shape(shape)) + "skipped: " + reason);
  save();
}

void BenchReport::left_out(const BenchOp& op, const std::vector<int64_t>& tokens) {
  std::string sizes;
  for (const int64_t size : tokens) sizes += (sizes.empty() ? "" : ", ") + format_count(size);
  json_["left_out"].push_back(
      {{"op", op.name}, {"pass", op.pass}, {"tokens", tokens}, {"max_tokens", op.max_tokens}});
  print_line(left_columns(op, fmt::format("up to {}", format_count(op.max_tokens))) +
             "left out: " + sizes);
  save();
}

void BenchReport::lists(const std::string& name, const ListFacts& facts) {
  if (!json_.contains("lists")) print_line("\n" + list_facts_head());
  nlohmann::json row = {{"op", name}, {"forced_frac", facts.forced}};
  for (size_t i = 0; i < kUnionTokens.size(); ++i) {
    row["union_" + std::to_string(kUnionTokens[i])] = facts.unions[i];
  }
  json_["lists"].push_back(row);
  print_line(list_facts_line(name, facts));
  save();
}

void BenchReport::save() const {
  if (!json_file_.empty()) write_file_atomically(json_file_, json_.dump(1) + "\n");
}

}  // namespace sala
