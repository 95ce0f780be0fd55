// Files of a run folder that a start or end of a run writes anew or cuts: metrics.jsonl,
// recipe.yaml, report.txt, report.html, scores.h5. Users keep files under these names too, or edit
// ours; those are never overwritten.
#pragma once

#include <string>

namespace sala {

inline constexpr const char* kMetricsFile = "metrics.jsonl";
inline constexpr const char* kRecipeFile = "recipe.yaml";
inline constexpr const char* kReportFile = "report.txt";
inline constexpr const char* kPageFile = "report.html";
inline constexpr const char* kScoresFile = "scores.h5";

// Throws when one of these names holds what no run wrote, or what was edited since: before
// anything is computed, not when it is to be written.
void check_own_files(const std::string& run_folder);

// Writes `text` and a last line with its hash, by which it is known as ours; throws when there is
// something else at `path`.
void write_own_text(const std::string& path, const std::string& text);
// The same for HTML: the last line is a comment. No start of a run is refused for such a file.
void write_own_page(const std::string& path, const std::string& html);

}  // namespace sala
