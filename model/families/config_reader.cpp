// Key access of config_reader.h.
#include "model/families/config_reader.h"

#include <stdexcept>

namespace sala {

using nlohmann::json;

namespace {

// For a message: what is long or nested is named, not written out.
std::string shown(const json& value) {
  constexpr size_t kMostBytes = 60;
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= kMostBytes ? text : text.substr(0, kMostBytes) + "…";
}

// A line for people, whatever a string of the file held.
std::string cut(std::string text) {
  constexpr size_t kMostBytes = 400;
  if (text.size() > kMostBytes) text = text.substr(0, kMostBytes) + "…";
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return text;
}

bool is_integer(const json& value) {
  return value.is_number_integer() &&
         (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
}

}  // namespace

ConfigReader::ConfigReader(const json& object, std::string where, std::string prefix)
    : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {
  if (!object_.is_object()) {
    const std::string at = prefix_.empty() ? "" : ": " + prefix_.substr(0, prefix_.size() - 1);
    throw std::runtime_error(where_ + at + ": expected a JSON object, got " + object_.type_name());
  }
}

void ConfigReader::fail(const std::string& key, const std::string& problem) const {
  throw std::runtime_error(where_ + ": " + prefix_ + key + ": " + cut(problem));
}

bool ConfigReader::has(const char* key) const {
  const auto at = object_.find(key);
  return at != object_.end() && !at->is_null();
}

bool ConfigReader::is_null(const char* key) const {
  const auto at = object_.find(key);
  return at != object_.end() && at->is_null();
}

const json& ConfigReader::value(const char* key) const {
  if (!has(key)) fail(key, "expected this key, it is missing");
  return object_.at(key);
}

int64_t ConfigReader::integer(const char* key) const {
  const json& v = value(key);
  if (!is_integer(v)) fail(key, "expected an integer, got " + shown(v));
  return v.get<int64_t>();
}

int64_t ConfigReader::integer(const char* key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

double ConfigReader::number(const char* key) const {
  const json& v = value(key);
  if (!v.is_number()) fail(key, "expected a number, got " + shown(v));
  return v.get<double>();
}

double ConfigReader::number(const char* key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool ConfigReader::flag(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  const json& v = value(key);
  if (!v.is_boolean()) fail(key, "expected true or false, got " + shown(v));
  return v.get<bool>();
}

std::string ConfigReader::text(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  const json& v = value(key);
  if (!v.is_string()) fail(key, "expected a string, got " + shown(v));
  return v.get<std::string>();
}

std::vector<double> ConfigReader::numbers(const char* key) const {
  std::vector<double> list;
  if (!value(key).is_array()) fail(key, "expected a list of numbers");
  for (const json& v : value(key)) {
    if (!v.is_number()) fail(key, "expected a list of numbers, found " + shown(v));
    list.push_back(v.get<double>());
  }
  return list;
}

std::vector<std::string> ConfigReader::texts(const char* key) const {
  std::vector<std::string> list;
  if (!value(key).is_array()) fail(key, "expected a list of strings");
  for (const json& v : value(key)) {
    if (!v.is_string()) fail(key, "expected a list of strings, found " + shown(v));
    list.push_back(v.get<std::string>());
  }
  return list;
}

std::vector<int64_t> ConfigReader::token_ids(const char* key) const {
  if (!has(key)) return {};
  const json& v = value(key);
  if (is_integer(v)) return {v.get<int64_t>()};
  if (!v.is_array()) fail(key, "expected a token id or a list of them, got " + shown(v));
  std::vector<int64_t> ids;
  for (const json& id : v) {
    if (!is_integer(id)) fail(key, "expected token ids, found " + shown(id));
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

ConfigReader ConfigReader::object(const char* key) const {
  return ConfigReader(value(key), where_, prefix_ + key + ".");
}

}  // namespace sala
