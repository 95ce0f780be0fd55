// Import of Hugging Face folders: that their tensors are exactly ours, and that they are sound.
#include "trainer/folder/reader.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <stdexcept>
#include <system_error>

#include "data/files/input_file.h"
#include "model/families/families.h"
#include "trainer/folder/hashes.h"
#include "trainer/folder/tensors.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostConfigBytes = 16'000'000;
const char* const kEmbedding = "model.embed_tokens.weight";
const char* const kHead = "lm_head.weight";

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// Everything that is wrong with the folder, gathered before the first byte is copied.
struct Mismatches {
  std::vector<std::string> missing, unexpected, shapes, dtypes;

  // How the folder names all that is missing, if other names are all that is wrong: a model inside
  // of another one, without its head, or wrapped when it was saved.
  std::string other_naming() const {
    std::vector<std::string> wanted = missing;  // a model without its head lacks that as well
    std::erase(wanted, kHead);
    if (wanted.empty()) return "";
    const std::set<std::string> there(unexpected.begin(), unexpected.end());
    const auto holds_all = [&](const auto& renamed) {
      return std::all_of(wanted.begin(), wanted.end(),
                         [&](const std::string& name) { return there.count(renamed(name)) > 0; });
    };
    const std::string ours = "model.";
    if (holds_all(
            [&](const std::string& n) { return n.substr(std::min(n.size(), ours.size())); })) {
      return "without the \"model.\" that the names of a language model with its head begin with";
    }
    for (const std::string& name : unexpected) {
      if (!name.ends_with(wanted[0])) continue;
      const std::string before = name.substr(0, name.size() - wanted[0].size());
      if (holds_all([&](const std::string& n) { return before + n; })) {
        return "with \"" + list_text({before}) + "\" before the names of a language model";
      }
    }
    return "";
  }

  void raise(const std::string& folder) const {
    if (const std::string naming = other_naming(); !naming.empty()) {
      throw std::runtime_error(folder + ": its tensors are named " + list_text({unexpected[0]}) +
                               " and so on, " + naming +
                               ": load it as a causal language model and save that alone");
    }
    std::string text;
    const auto add = [&](const char* what, const std::vector<std::string>& list) {
      if (!list.empty()) text += (text.empty() ? "" : "; ") + (what + list_text(list));
    };
    add("missing tensors: ", missing);
    add("unexpected tensors: ", unexpected);
    add("wrong shapes: ", shapes);
    add("unsupported dtypes (F32, F16 and BF16 are read): ", dtypes);
    if (!text.empty()) throw std::runtime_error(folder + ": " + text);
  }
};

void compare(const FolderTensors& stored, const Entry& entry, const std::string& name,
             Mismatches& found) {
  if (!stored.has(name)) {
    found.missing.push_back(entry.name);
    return;
  }
  const SafetensorsEntry& there = stored.entry(name);
  if (there.shape != entry.shape) {
    found.shapes.push_back(name + " expected " + shape_text(entry.shape) + ", got " +
                           shape_text(there.shape));
  }
  if (there.dtype != "F32" && there.dtype != "F16" && there.dtype != "BF16") {
    found.dtypes.push_back(name + " is " + there.dtype);
  }
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

// Tensors that old files carry and no model needs: rotary buffers, and the copy that a tied head
// is.
bool is_harmless(const FolderTensors& stored, const std::string& name, bool compare_values) {
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  if (name != kHead || !stored.has(kEmbedding)) return false;
  const SafetensorsEntry &head = stored.entry(kHead), &tied = stored.entry(kEmbedding);
  return head.dtype == tied.dtype && head.shape == tied.shape &&
         SafetensorsReader::can_read(head.dtype) &&
         (!compare_values || same_bytes(stored.tensor(kHead), stored.tensor(kEmbedding)));
}

// Where each of the model's tensors lies, by its name in the files. Throws where the folder's
// tensors are not exactly those of the layouts. Of tied tensors a file may keep either one: the
// reference library's writer keeps the first by name, lm_head.weight.
std::map<std::string, std::string> match_tensors(const std::string& folder,
                                                 const FolderTensors& stored,
                                                 const std::vector<const Layout*>& layouts,
                                                 bool compare_values) {
  std::map<std::string, std::string> ours;  // by the name in the files
  std::set<std::string> expected;
  for (const Layout* layout : layouts) {
    for (const Entry& entry : layout->entries) {
      TORCH_CHECK(expected.insert(entry.name).second,
                  "read_weights: expected each tensor in one part, ", entry.name, " is in two");
    }
  }
  const bool head_is_embedding =
      expected.count(kHead) == 0 && stored.has(kHead) && !stored.has(kEmbedding);
  Mismatches found;
  for (const Layout* layout : layouts) {
    for (const Entry& entry : layout->entries) {
      const std::string name = head_is_embedding && entry.name == kEmbedding ? kHead : entry.name;
      compare(stored, entry, name, found);
      ours.emplace(name, entry.name);
    }
  }
  for (const std::string& name : stored.names()) {
    if (ours.count(name) > 0 || is_harmless(stored, name, compare_values)) continue;
    found.unexpected.push_back(
        name == kHead ? name + " (config.json ties it to the embeddings, yet it differs)" : name);
  }
  found.raise(folder);
  return ours;
}

// Bits of the exponent all set: NaN or infinity.
template <class Word>
int64_t count_words(const at::Tensor& t, Word exponent) {
  const auto* words = static_cast<const Word*>(t.const_data_ptr());
  int64_t count = 0;
  for (int64_t i = 0; i < t.numel(); ++i) count += (words[i] & exponent) == exponent;
  return count;
}

int64_t count_non_finite(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return count_words<uint32_t>(t, 0x7f800000);
    case at::kHalf:
      return count_words<uint16_t>(t, 0x7c00);
    default:
      return count_words<uint16_t>(t, 0x7f80);  // bf16
  }
}

// Tensors of one file in the order in which they lie there.
std::vector<std::string> in_file_order(const SafetensorsReader& file) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : file.entries()) names.push_back(name);
  std::sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    const SafetensorsEntry &x = file.entries().at(a), &y = file.entries().at(b);
    return std::pair(x.offset, x.num_bytes) < std::pair(y.offset, y.num_bytes);
  });
  return names;
}

}  // namespace

ModelConfig read_model_config(const std::string& folder) {
  return parse_model_config(read_config_json(folder), folder + "/config.json");
}

nlohmann::json read_config_json(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw std::runtime_error(folder + ": expected a model folder, " +
                             (fs::exists(folder, error) ? "this is a file" : "there is none"));
  }
  const std::string path = folder + "/config.json";
  if (!fs::exists(path, error) && !error) {
    throw std::runtime_error(folder +
                             ": expected a Hugging Face model folder, it has no config.json");
  }
  return read_json_file(path, kMostConfigBytes);
}

void check_weights(const std::string& folder, const std::vector<Layout>& layouts) {
  std::vector<const Layout*> pointers;
  for (const Layout& layout : layouts) pointers.push_back(&layout);
  match_tensors(folder, FolderTensors(folder), pointers, false);
}

SourceWeights::SourceWeights(const std::string& folder, const std::vector<LayoutPtr>& layouts)
    : folder_(folder), files_(folder) {
  std::vector<const Layout*> pointers;
  for (const LayoutPtr& layout : layouts) pointers.push_back(layout.get());
  for (const auto& [stored, ours] : match_tensors(folder, files_, pointers, true)) {
    stored_name_[ours] = stored;
  }
}

void SourceWeights::verify(int share, int of) const {
  int index = 0;
  for (const SafetensorsReader& file : files_.files()) {
    if (index++ % of != share) continue;
    const StatedHash stated = stated_hash(folder_, fs::path(file.path()).filename().string());
    if (stated.hex.empty()) continue;
    FileHash hash(file.path());
    const SafetensorsReader::Open open(file);
    at::Tensor buffer;
    for (const std::string& name : in_file_order(file)) hash.update(open.tensor(name, buffer));
    hash.check(stated);
  }
}

at::ScalarType SourceWeights::dtype_of(const Layout& layout) const {
  std::set<std::string> types;
  for (const Entry& entry : layout.entries) {
    types.insert(files_.entry(stored_name_.at(entry.name)).dtype);
  }
  if (types == std::set<std::string>{"BF16"}) return at::kBFloat16;
  if (types == std::set<std::string>{"F16"}) return at::kHalf;
  return at::kFloat;
}

void SourceWeights::read(Weights& part) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < part.views().size(); ++i) {
    const std::string& name = stored_name_.at(part.layout().entries[i].name);
    const at::Tensor values = files_.tensor(name, buffer_);
    if (const int64_t count = count_non_finite(values); count > 0) {
      non_finite_.push_back(name + " (" + std::to_string(count) + " of " +
                            std::to_string(values.numel()) + ")");
    }
    part.views()[i].copy_(values);
  }
}

void SourceWeights::check_finite() const {
  if (non_finite_.empty()) return;
  throw std::runtime_error(folder_ + ": NaN or infinity among the values of " +
                           list_text(non_finite_) +
                           ": the download is damaged or the model diverged before it was saved; "
                           "fetch it again or take an earlier one");
}

void read_weights(const std::string& folder, std::vector<Weights>& parts) {
  std::vector<LayoutPtr> layouts;
  for (const Weights& part : parts) layouts.push_back(part.layout_pointer());
  SourceWeights files(folder, layouts);
  files.verify(0, 1);
  for (Weights& part : parts) files.read(part);
  files.check_finite();
}

}  // namespace sala
