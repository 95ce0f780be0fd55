// Files that a user names for results: looked at before the work, which may take hours.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>

namespace sala {

// Throws, in one line, unless a file can be written at `path`: its folder is there, and nothing
// else than a file for which `is_kind` says yes (an exception is a no). `kind`: "logits of
// sala-inspect", for the message.
void check_output_file(const std::string& path, const std::string& kind,
                       const std::function<bool()>& is_kind);

// Whether the file holds a JSON object with these keys.
bool is_json_with(const std::string& path, std::initializer_list<const char*> keys);

}  // namespace sala
