// Whether a page is well-formed XML, as far as our pages go: one root, elements closed in order,
// attributes quoted and different, text and attributes without bare < and &, no forbidden
// characters. Returns what is wrong and where, empty when nothing is.
#pragma once

#include <fmt/format.h>

#include <cctype>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sala::test {

class XmlCheck {
 public:
  explicit XmlCheck(std::string_view text) : text_(text) {}

  std::string operator()() {
    while (at_ < text_.size() && error_.empty()) {
      if (text_[at_] == '<') {
        markup();
      } else {
        character(open_.empty());
      }
    }
    if (error_.empty() && !open_.empty()) fail("<" + open_.back() + "> is never closed");
    if (error_.empty() && num_roots_ != 1) fail("expected one root element");
    return error_;
  }

 private:
  bool starts(std::string_view word) const { return text_.substr(at_).starts_with(word); }
  void fail(const std::string& what) {
    if (error_.empty()) {
      error_ = fmt::format("byte {}: {} at '{}'", at_, what, text_.substr(at_, 60));
    }
  }

  // One character of content or of an attribute.
  void character(bool outside) {
    const char c = text_[at_];
    const auto byte = static_cast<unsigned char>(c);
    if (outside && !std::isspace(byte)) return fail("text outside of the root");
    if (byte < 0x20 && c != '\n' && c != '\t' && c != '\r') return fail("a control character");
    if (c == '&') {
      for (const char* entity : {"&amp;", "&lt;", "&gt;", "&quot;"}) {
        if (starts(entity)) {
          at_ += std::string_view(entity).size();
          return;
        }
      }
      return fail("a bare &");
    }
    ++at_;
  }

  std::string name() {
    const size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) ||
                                  text_[at_] == '-' || text_[at_] == ':')) {
      ++at_;
    }
    if (at_ == begin) fail("a name is missing");
    return std::string(text_.substr(begin, at_ - begin));
  }

  void markup() {
    for (const auto& [start, end] : {std::pair{"<!--", "-->"}, {"<!DOCTYPE ", ">"}}) {
      if (!starts(start)) continue;
      const size_t found = text_.find(end, at_);
      if (found == text_.npos) return fail("never ends");
      at_ = found + std::string_view(end).size();
      return;
    }
    starts("</") ? close() : open();
  }

  void close() {
    at_ += 2;
    const std::string closed = name();
    if (open_.empty() || open_.back() != closed) return fail("closes " + closed);
    if (!starts(">")) return fail("expected >");
    ++at_;
    open_.pop_back();
  }

  void open() {
    ++at_;
    const std::string tag = name();
    std::set<std::string> attributes;
    while (error_.empty() && starts(" ")) {
      ++at_;
      const std::string attribute = name();
      if (!attributes.insert(attribute).second) return fail("twice: " + attribute);
      if (!starts("=\"")) return fail("an attribute without a quoted value");
      at_ += 2;
      while (error_.empty() && at_ < text_.size() && text_[at_] != '"') {
        if (text_[at_] == '<') return fail("a bare < in an attribute");
        character(false);
      }
      ++at_;
    }
    if (open_.empty()) ++num_roots_;
    if (starts("/>")) {
      at_ += 2;
    } else if (starts(">")) {
      ++at_;
      open_.push_back(tag);
    } else {
      fail("a tag that does not end");
    }
  }

  std::string_view text_;
  size_t at_ = 0;
  int num_roots_ = 0;
  std::vector<std::string> open_;
  std::string error_;
};

}  // namespace sala::test
