// Three kinds of files, told apart by how they begin.
#include "trainer/scores/order_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/hdf5_file.h"

namespace sala {

namespace {

std::vector<double> read_scores(const std::string& path, int64_t num_layers) {
  const Hdf5File file = Hdf5File::open(path);
  if (!file.exists("score") || file.type("score") != Hdf5Type::kF64) {
    throw std::runtime_error(path + ": expected the scores.h5 of a run, with a dataset `score`");
  }
  std::vector<double> scores = file.read_all<double>("score");
  if (static_cast<int64_t>(scores.size()) != num_layers) {
    throw std::runtime_error(fmt::format("{}: has the scores of {} layers, but the source has {}",
                                         path, scores.size(), num_layers));
  }
  if (!std::all_of(scores.begin(), scores.end(), [](double s) { return std::isfinite(s); })) {
    throw std::runtime_error(path + ": holds scores that are not finite");
  }
  return scores;
}

std::vector<int64_t> parse_json(const std::string& path, const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const bool numbers = json.is_array() && std::all_of(json.begin(), json.end(), [](const auto& x) {
                         return x.is_number_integer();
                       });
  if (!numbers) throw std::runtime_error(path + ": expected a JSON list of layer numbers");
  return json.get<std::vector<int64_t>>();
}

std::vector<int64_t> parse_text(const std::string& path, const std::string& text) {
  std::vector<int64_t> layers;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    line.erase(std::min(line.find('#'), line.size()));
    std::replace(line.begin(), line.end(), ',', ' ');
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      int64_t layer = 0;
      const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), layer);
      if (error != std::errc() || end != word.data() + word.size()) {
        throw std::runtime_error(
            fmt::format("{}: expected layer numbers, but found '{}'", path, word.substr(0, 40)));
      }
      layers.push_back(layer);
    }
  }
  return layers;
}

}  // namespace

std::vector<double> read_order_file(const std::string& path, int64_t num_layers) {
  if (!path_exists(path)) throw std::runtime_error(path + ": there is no such file");
  if (path.ends_with(".h5")) return read_scores(path, num_layers);
  const std::string text = read_text_file(path);
  const size_t start = text.find_first_not_of(" \t\r\n");
  const bool is_json = start != std::string::npos && (text[start] == '[' || text[start] == '{');
  const auto layers = is_json ? parse_json(path, text) : parse_text(path, text);
  if (layers.empty()) throw std::runtime_error(path + ": names no layer");
  std::vector<double> scores(static_cast<size_t>(num_layers), 0.0);
  double score = static_cast<double>(layers.size());
  for (const int64_t layer : layers) {
    if (layer < 0 || layer >= num_layers) {
      throw std::runtime_error(fmt::format("{}: {} is no layer of the source, whose last is {}",
                                           path, layer, num_layers - 1));
    }
    double& its = scores[static_cast<size_t>(layer)];
    if (its > 0) throw std::runtime_error(fmt::format("{}: names layer {} twice", path, layer));
    its = score--;
  }
  return scores;
}

}  // namespace sala
