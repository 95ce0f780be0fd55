// The page's style sheet: light and dark by the reader's setting, phones, print.
#pragma once

namespace sala {

extern const char* const kStyle;  // without < and &, which XML would want escaped

}  // namespace sala
