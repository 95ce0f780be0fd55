# Writes OUT, a source file with the git revision of SOURCE, and "+" where files differ from it. A file that
# says the same already stays as it is, so that nothing is compiled again.
set(revision "")
if(EXISTS ${SOURCE}/.git)
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty=+ --abbrev=12 --exclude=*
    OUTPUT_VARIABLE revision OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT
  "namespace sala {\nextern const char* const kRevision;\nconst char* const kRevision = \"@revision@\";\n}\n")
