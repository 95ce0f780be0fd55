// The folder of an export while it is being written. Nothing is renamed or removed beside it, so a
// mounted folder, a link to a folder and a folder in somebody else's parent will do. A reader never
// takes half a model for a whole one: config.json, without which nothing loads, comes last.
//
// sala_export.json comes first. It says who writes (`maker`) and which files: what a killed export
// left is known by it, and only these files are ever removed.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sala {

class ExportTarget {
 public:
  // Throws unless FOLDER can be made, is empty, or holds an export of the same `maker` that is
  // unfinished or as it was written; that one is removed. `files`: names of all that will be
  // written but config.json.
  ExportTarget(const std::string& folder, const std::string& maker,
               const std::vector<std::string>& files);
  ~ExportTarget();  // without finish(): what was written is gone, and the folder if it was made
                    // here
  ExportTarget(const ExportTarget&) = delete;
  ExportTarget& operator=(const ExportTarget&) = delete;

  const std::string& folder() const { return folder_; }  // links resolved
  // Hashes what was written, then writes config.json.
  void finish(const nlohmann::json& config);

 private:
  void make_folder(const std::string& folder);
  void remove_made_folders();
  void lock();

  std::string folder_, maker_;
  std::vector<std::string> files_, made_folders_;
  int marker_ = -1;  // descriptor; locked as long as we write
  bool finished_ = false;
};

// Why FOLDER cannot be exported to by `maker` for what it holds; empty when it can.
std::string export_obstacle(const std::string& folder, const std::string& maker);

// Whether FOLDER holds a finished export.
bool has_export(const std::string& folder);

}  // namespace sala
