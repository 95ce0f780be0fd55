# Writes OUT, a C++ file in which sala::transformers_code() returns the Python files of FOLDER.
file(GLOB files ${FOLDER}/*.py)
set(entries "")
foreach(file ${files})
  cmake_path(GET file FILENAME name)
  file(READ ${file} text)
  string(APPEND entries "    {\"${name}\", R\"python(${text})python\"},\n")
endforeach()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT [[
// Written by trainer/folder/embed_python.cmake from trainer/folder/transformers/*.py.
#include "trainer/folder/transformers_code.h"

namespace sala {

const std::vector<CodeFile>& transformers_code() {
  static const std::vector<CodeFile> files = {
@entries@  };
  return files;
}

}  // namespace sala
]])
