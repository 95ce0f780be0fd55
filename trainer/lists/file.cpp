// Datasets, attributes, and what a list may be.
#include "trainer/lists/file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <stdexcept>

#include "data/files/hash.h"
#include "data/files/hdf5_file.h"
#include "data/files/input_file.h"

namespace sala {

namespace {

constexpr const char* kFormatName = "sala-block-lists";
const std::string kPrefix = "layer_";
constexpr int64_t kMostBlocks = std::numeric_limits<int16_t>::max();
constexpr int64_t kMostElements = int64_t{1} << 30;  // of one layer; 8 KV heads of 1M tokens
constexpr int64_t kMostNumber = int64_t{1} << 30;
constexpr int64_t kChunkTokens = 4096;

struct Field {
  const char* name;
  int64_t SparseConfig::*value;
  int64_t least;
};

constexpr Field kFields[] = {
    {"kernel_size", &SparseConfig::kernel_size, 1},
    {"kernel_stride", &SparseConfig::kernel_stride, 1},
    {"init_blocks", &SparseConfig::init_blocks, 0},
    {"block_size", &SparseConfig::block_size, 1},
    {"window_size", &SparseConfig::window_size, 0},
    {"topk", &SparseConfig::topk, 1},
    {"dense_len", &SparseConfig::dense_len, 0},
};

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

std::string dataset_name(int64_t layer) { return kPrefix + std::to_string(layer); }

// XXH3-64 of every layer's number (i64) and stored bytes, in order.
class Checksum {
 public:
  void add(int64_t layer, const at::Tensor& stored) {
    hash_.update(&layer, sizeof layer);
    hash_.update(stored.const_data_ptr(), stored.nbytes());
  }
  std::string hex() const { return hash_.hex(); }

 private:
  Xxh3Stream hash_{Xxh3Width::k64};
};

int64_t layer_of(const std::string& path, const std::string& name) {
  int64_t layer = -1;
  const char* const end = name.data() + name.size();
  if (name.starts_with(kPrefix)) {
    const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, layer);
    if (error == std::errc() && rest == end && layer >= 0) return layer;
  }
  fail(path, "expected datasets named layer_0, layer_1, ..., found another name");
}

int64_t number(const Hdf5File& file, const char* name, int64_t least) {
  const int64_t value = file.attribute_int(name);
  if (value < least || value > kMostNumber) {
    fail(file.path(),
         fmt::format("attribute `{}` is {}, expected {} to {}", name, value, least, kMostNumber));
  }
  return value;
}

void read_attributes(const Hdf5File& file, BlockLists& lists) {
  if (!file.has_attribute("format") || file.attribute_string("format") != kFormatName) {
    fail(file.path(),
         "expected block lists, as sala-inspect --lists writes them, found another HDF5 file");
  }
  for (const Field& field : kFields) {
    lists.config.*field.value = number(file, field.name, field.least);
  }
  lists.num_heads = number(file, "num_heads", 1);
  lists.head_size = number(file, "head_size", 1);
  lists.first_token = number(file, "first_token", 0);
}

void check_size(const std::string& path, const std::string& name,
                const std::vector<int64_t>& shape) {
  if (shape[0] <= kMostElements && shape[1] <= kMostElements / (shape[0] * shape[2])) return;
  fail(path, fmt::format("dataset `{}` has {} x {} x {} blocks, more than the {} of one layer",
                         name, shape[0], shape[1], shape[2], kMostElements));
}

void check_shape(const std::string& path, const std::string& name, const BlockLists& lists,
                 const std::vector<int64_t>& shape) {
  const int64_t K = lists.config.blocks_per_token();
  if (shape.size() != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] != K) {
    fail(path, fmt::format("dataset `{}` expected KV heads x tokens x {} blocks, found another "
                           "shape",
                           name, K));
  }
  check_size(path, name, shape);
  if (lists.num_heads % shape[0] != 0) {
    fail(path, fmt::format("dataset `{}` has {} KV heads, which {} query heads cannot share", name,
                           shape[0], lists.num_heads));
  }
  if (!lists.layers.empty() && lists.layers.front().blocks.sizes() != at::IntArrayRef(shape)) {
    fail(path, fmt::format("dataset `{}` has other sizes than `{}`", name,
                           dataset_name(lists.layers.front().layer)));
  }
}

// A token lists all blocks up to its own, or K of them, ascending; -1 fills the rest.
bool is_list(const int* list, int64_t K, int64_t own) {
  const int64_t count = std::min(K, own + 1);
  for (int64_t i = 0; i < K; ++i) {
    if (i >= count) {
      if (list[i] != -1) return false;
    } else if (list[i] < 0 || list[i] > own || (i > 0 && list[i] <= list[i - 1])) {
      return false;
    }
  }
  return true;
}

void check_lists(const std::string& path, const BlockLists& lists, const LayerLists& layer) {
  const int64_t K = layer.blocks.size(2);
  const int* list = layer.blocks.const_data_ptr<int>();
  for (int64_t head = 0; head < layer.blocks.size(0); ++head) {
    for (int64_t t = 0; t < layer.blocks.size(1); ++t, list += K) {
      const int64_t own = (lists.first_token + t) / lists.config.block_size;
      if (is_list(list, K, own)) continue;
      fail(path, fmt::format("dataset `{}`, KV head {}, token {}: expected {} ascending blocks of "
                             "0 to {}, then -1",
                             dataset_name(layer.layer), head, lists.first_token + t,
                             std::min(K, own + 1), own));
    }
  }
}

// Block numbers have 15 bits.
void check_length(const std::string& path, const BlockLists& lists) {
  const int64_t tokens = lists.first_token + lists.num_tokens();
  const int64_t most = kMostBlocks * lists.config.block_size;
  if (tokens <= most) return;
  fail(path, fmt::format("a document of {} tokens has more blocks than block lists can number: "
                         "expected at most {} tokens",
                         tokens, most));
}

}  // namespace

BlockLists last_tokens(const BlockLists& lists, int64_t count) {
  const int64_t dropped = std::max<int64_t>(lists.num_tokens() - count, 0);
  BlockLists last = lists;
  last.first_token += dropped;
  for (LayerLists& layer : last.layers) {
    layer.blocks = layer.blocks.narrow(1, dropped, layer.blocks.size(1) - dropped).contiguous();
  }
  return last;
}

void write_block_lists(const std::string& path, const BlockLists& lists) {
  check_length(path, lists);
  for (const auto& [layer, blocks] : lists.layers) {
    check_size(path, dataset_name(layer), blocks.sizes().vec());
  }
  Hdf5File file = Hdf5File::create(path);
  Checksum checksum;
  for (const auto& [layer, blocks] : lists.layers) {
    const at::Tensor stored = blocks.to(at::kShort).contiguous();
    const std::string name = dataset_name(layer);
    file.create_compressed_dataset(name, Hdf5Type::kI16, stored.sizes().vec(),
                                   {1, kChunkTokens, stored.size(2)});
    file.write(name, 0, stored.size(0), stored.const_data_ptr<int16_t>());
    checksum.add(layer, stored);
  }
  file.set_attribute("format", std::string(kFormatName));
  for (const Field& field : kFields) file.set_attribute(field.name, lists.config.*field.value);
  file.set_attribute("num_heads", lists.num_heads);
  file.set_attribute("head_size", lists.head_size);
  file.set_attribute("first_token", lists.first_token);
  file.set_attribute("xxh3", checksum.hex());
  file.commit();
}

BlockLists read_block_lists(const std::string& path) {
  require_input_file(path);
  const Hdf5File file = Hdf5File::open(path);
  BlockLists lists;
  read_attributes(file, lists);
  std::vector<int64_t> layers;
  for (const std::string& name : file.list_datasets()) layers.push_back(layer_of(path, name));
  if (layers.empty()) fail(path, "holds the lists of no layer");
  std::sort(layers.begin(), layers.end());  // their names sort layer_10 before layer_2
  Checksum checksum;
  for (const int64_t layer : layers) {
    const std::string name = dataset_name(layer);
    const std::vector<int64_t> shape = file.shape(name);
    check_shape(path, name, lists, shape);
    const at::Tensor stored = at::empty(shape, at::kShort);
    file.read(name, 0, shape[0], stored.mutable_data_ptr<int16_t>());
    checksum.add(layer, stored);
    lists.layers.push_back({layer, stored.to(at::kInt)});
  }
  if (checksum.hex() != file.attribute_string("xxh3")) {
    fail(path, "is damaged: its checksum is another; copy it again");
  }
  check_length(path, lists);
  for (const LayerLists& layer : lists.layers) check_lists(path, lists, layer);
  return lists;
}

}  // namespace sala
