// Head, sections, foot.
#include "trainer/report/page.h"

#include <fmt/format.h>

#include "trainer/charts/html.h"
#include "trainer/report/style.h"

namespace sala {

std::string report_page(const Record& record, const PageContext& context) {
  const std::string body = head_html(record, context) + results_html(record) + layers_html(record) +
                           training_html(record) + retrieval_html(record) + choices_html(record) +
                           positions_html(record) + speed_html(record) +
                           origins_html(record, context);
  std::string foot = "Made by sala-train from metrics.jsonl.";
  if (context.num_unreadable > 0) {
    foot += fmt::format(" {} of its lines could not be read.", context.num_unreadable);
  }
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n"
      "<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"/>\n<title>{}</title>\n"
      "<style>{}</style>\n</head>\n<body>\n<main>\n{}<footer>{}</footer>\n</main>\n"
      "</body>\n</html>\n",
      escaped("Conversion " + context.folder), kStyle, body, escaped(foot));
}

}  // namespace sala
