// The datasets of a part, and the checksum of a piece.
#include "data/teacher/part.h"

#include <algorithm>
#include <stdexcept>

#include "data/files/hash.h"

namespace sala {
namespace {

constexpr const char* kFormatName = "sala-teacher-topk";

Hdf5Type id_type(const TopkFormat& format) {
  return format.wide_ids() ? Hdf5Type::kU32 : Hdf5Type::kU16;
}

Hdf5Type value_type(const TopkFormat& format) {
  return format.half ? Hdf5Type::kU16 : Hdf5Type::kF32;
}

// In the order in which they are hashed; `rows` of each.
struct Column {
  const char* name;
  Hdf5Type type;
  std::int64_t width;  // 0: one number a token
};

std::vector<Column> columns_of(const TopkFormat& format) {
  return {{"ids", Hdf5Type::kI32, 0},
          {"position", Hdf5Type::kI32, 0},
          {"top_ids", id_type(format), format.topk},
          {"log_p", value_type(format), format.topk},
          {"log_tail", Hdf5Type::kF32, 0}};
}

std::vector<std::int64_t> shape_of(const Column& column, std::int64_t rows) {
  if (column.width == 0) return {rows};
  return {rows, column.width};
}

const void* bytes_of(const TopkTokens& tokens, std::size_t column) {
  const void* const all[] = {tokens.ids.data(), tokens.position.data(),
                             tokens.top_ids.const_data_ptr(), tokens.log_p.const_data_ptr(),
                             tokens.log_tail.const_data_ptr()};
  return all[column];
}

void* bytes_of(TopkTokens& tokens, std::size_t column) {
  return const_cast<void*>(bytes_of(static_cast<const TopkTokens&>(tokens), column));
}

// XXH3-64 of the place and of all columns' bytes.
std::int64_t checksum_of(const TopkTokens& tokens, const std::vector<Column>& columns) {
  Xxh3Stream hash(Xxh3Width::k64);
  hash.update(&tokens.begin, sizeof tokens.begin);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    const std::int64_t width = std::max<std::int64_t>(1, columns[c].width);
    hash.update(bytes_of(tokens, c),
                static_cast<std::size_t>(tokens.count() * width * element_size(columns[c].type)));
  }
  return static_cast<std::int64_t>(std::stoull(hash.hex(), nullptr, 16));
}

std::vector<TopkTokens> cut_in_pieces(const std::vector<TopkTokens>& tokens) {
  std::vector<TopkTokens> pieces;
  for (const TopkTokens& run : tokens) {
    for (std::int64_t first = 0; first < run.count(); first += kPieceTokens) {
      pieces.push_back(run.narrow(first, std::min(kPieceTokens, run.count() - first)));
    }
  }
  return pieces;
}

}  // namespace

TopkTokens TopkTokens::narrow(std::int64_t first, std::int64_t count) const {
  const auto cut = [&](const std::vector<std::int32_t>& x) {
    return std::vector<std::int32_t>(x.begin() + first, x.begin() + first + count);
  };
  return {begin + first,
          cut(ids),
          cut(position),
          top_ids.narrow(0, first, count),
          log_p.narrow(0, first, count),
          log_tail.narrow(0, first, count)};
}

TopkTokens empty_tokens(const TopkFormat& format, std::int64_t begin, std::int64_t count) {
  const auto size = static_cast<std::size_t>(count);
  return {begin,
          std::vector<std::int32_t>(size),
          std::vector<std::int32_t>(size),
          at::empty({count, format.topk}, format.wide_ids() ? at::kInt : at::kShort),
          at::empty({count, format.topk}, format.half ? at::kHalf : at::kFloat),
          at::empty({count}, at::kFloat)};
}

void write_topk_part(const std::string& path, const TopkFormat& format,
                     const std::vector<TopkTokens>& tokens) {
  const std::vector<TopkTokens> pieces = cut_in_pieces(tokens);
  const std::vector<Column> columns = columns_of(format);
  std::vector<std::int64_t> ranges, checksums;
  std::int64_t num_tokens = 0;
  for (const TopkTokens& piece : pieces) {
    ranges.insert(ranges.end(), {piece.begin, piece.count()});
    checksums.push_back(checksum_of(piece, columns));
    num_tokens += piece.count();
  }
  Hdf5File file = Hdf5File::create(path);
  file.create_dataset("pieces", Hdf5Type::kI64, {static_cast<std::int64_t>(pieces.size()), 2});
  file.write("pieces", 0, static_cast<std::int64_t>(pieces.size()), ranges.data());
  file.write_all("xxh3", checksums);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    file.create_dataset(columns[c].name, columns[c].type, shape_of(columns[c], num_tokens));
    std::int64_t row = 0;
    for (const TopkTokens& piece : pieces) {
      file.write_raw(columns[c].name, columns[c].type, row, piece.count(), bytes_of(piece, c));
      row += piece.count();
    }
  }
  file.set_attribute("format", std::string(kFormatName));
  file.set_attribute("cache", format.cache);
  file.set_attribute("topk", format.topk);
  file.set_attribute("num_tokens", num_tokens);
  file.commit();
}

TopkPart::TopkPart(const std::string& path, const TopkFormat& format)
    : format_(format), file_(Hdf5File::open(path)) {
  if (!file_.has_attribute("format") || file_.attribute_string("format") != kFormatName) {
    fail("expected a part of a teacher cache, found another HDF5 file; move it elsewhere");
  }
  if (file_.attribute_string("cache") != format.cache) {
    fail("belongs to another teacher cache; move it back");
  }
  check_datasets();
  const std::int64_t count = file_.shape("pieces")[0];
  std::vector<std::int64_t> ranges(static_cast<std::size_t>(2 * count));
  file_.read("pieces", 0, count, ranges.data());
  checksums_ = file_.read_all<std::int64_t>("xxh3");
  first_row_ = {0};
  for (std::size_t p = 0; p < static_cast<std::size_t>(count); ++p) {
    pieces_.push_back({ranges[2 * p], ranges[2 * p + 1]});
    const auto& [begin, tokens] = pieces_.back();
    if (begin < 0 || begin > INT64_MAX / 2 || tokens < 1 || tokens > kPieceTokens) {
      fail("is damaged: a piece of " + std::to_string(tokens) + " tokens from " +
           std::to_string(begin) + " on");
    }
    first_row_.push_back(first_row_.back() + tokens);
  }
  if (first_row_.back() != file_.num_elements("ids")) {
    fail("is damaged: its pieces have " + std::to_string(first_row_.back()) + " tokens, its ids " +
         std::to_string(file_.num_elements("ids")));
  }
}

void TopkPart::fail(const std::string& what) const {
  throw std::runtime_error(file_.path() + ": " + what);
}

void TopkPart::check_datasets() const {
  const auto is = [&](const std::string& name, Hdf5Type type, std::size_t dimensions) {
    return file_.exists(name) && file_.type(name) == type && file_.shape(name).size() == dimensions;
  };
  const auto refuse = [&](const char* name) {
    fail(std::string("is damaged: dataset `") + name + "` is missing, or of another type or size");
  };
  if (!is("pieces", Hdf5Type::kI64, 2) || file_.shape("pieces")[1] != 2) {
    refuse("pieces");
  }
  if (!is("xxh3", Hdf5Type::kI64, 1) || file_.shape("xxh3")[0] != file_.shape("pieces")[0]) {
    refuse("xxh3");
  }
  if (!is("ids", Hdf5Type::kI32, 1)) refuse("ids");
  const std::int64_t num_tokens = file_.shape("ids")[0];
  if (file_.shape("pieces")[0] > num_tokens) refuse("pieces");
  for (const Column& column : columns_of(format_)) {
    const auto shape = shape_of(column, num_tokens);
    if (!is(column.name, column.type, shape.size()) || file_.shape(column.name) != shape) {
      refuse(column.name);
    }
  }
}

TopkTokens TopkPart::read(std::size_t piece) const {
  const auto& [begin, count] = pieces_.at(piece);
  const std::vector<Column> columns = columns_of(format_);
  TopkTokens tokens = empty_tokens(format_, begin, count);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    file_.read_raw(columns[c].name, columns[c].type, first_row_[piece], count, bytes_of(tokens, c));
  }
  if (checksum_of(tokens, columns) != checksums_[piece]) {
    fail("is damaged: the checksum of tokens " + std::to_string(begin) + " to " +
         std::to_string(begin + count) + " is another");
  }
  return tokens;
}

}  // namespace sala
