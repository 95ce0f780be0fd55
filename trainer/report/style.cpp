// Colours are told apart by people who see few of them, and by their lightness in print.
#include "trainer/report/style.h"

namespace sala {

const char* const kStyle = R"css(
:root { color-scheme: light dark;
  --page: #f4f6f8; --card: #ffffff; --text: #1b2127; --quiet: #56616c; --edge: #d5dbe1;
  --grid: #e4e8ec; --code: #eef1f4; --heat: #0b5fa5; --heat-text: #ffffff;
  --teacher: #7b8591; --c1: #1f6fd1; --c2: #d1660f; --c3: #2c8a57; --c4: #8353c6; --c5: #c23a74;
  --c6: #8a7a00; --kept: #d97a06; --linear: #4a8fd6; --good: #1e7b46; --bad: #b3261e;
  --live: #1f6fd1; --warn-back: #fff4e0; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161b; --card: #1b2128; --text: #e3e8ed; --quiet: #9aa6b2; --edge: #343d47;
  --grid: #2b333c; --code: #252d36; --heat: #4fa3ea; --heat-text: #0b1116;
  --teacher: #95a1ad; --c1: #5aa5f2; --c2: #f0954a; --c3: #5dbd88; --c4: #b391ea; --c5: #ec7fae;
  --c6: #cbb94a; --kept: #f0a444; --linear: #4480bd; --good: #5dbd88; --bad: #f2837b;
  --live: #5aa5f2; --warn-back: #3a2d16; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 0.94rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
header, section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 18px; margin: 0 0 16px; }
footer, .quiet, .unit { color: var(--quiet); }
footer, .quiet { font-size: 0.87rem; }
.quiet { margin: 10px 0 0; max-width: 75ch; }
.unit { font-size: 0.87rem; font-weight: 400; }
.lead { margin: 0 0 12px; }
.state { font-weight: 600; }
.state.good { color: var(--good); } .state.bad { color: var(--bad); }
.state.live { color: var(--live); }
.warning { background: var(--warn-back); border-left: 4px solid var(--kept); border-radius: 4px;
  margin: 0 0 12px; padding: 8px 12px; overflow-wrap: anywhere; }
ol.stages, ol.layout { list-style: none; display: flex; flex-wrap: wrap; margin: 0 0 16px;
  padding: 0; gap: 4px; }
ol.stages li { border: 1px solid var(--edge); border-radius: 999px; padding: 1px 11px;
  font-size: 0.87rem; color: var(--quiet); overflow-wrap: anywhere; }
ol.stages li.done { color: var(--text); background: var(--code); }
ol.stages li.done::before { content: "\2713  "; color: var(--good); }
ol.stages li.now { color: var(--live); border-color: var(--live); font-weight: 600; }
ol.layout { margin: 6px 0 0; gap: 3px; display: grid;
  grid-template-columns: repeat(auto-fill, minmax(27px, 1fr)); }
ol.layout li { text-align: center; border-radius: 4px; padding: 5px 0; font-size: 0.75rem;
  font-variant-numeric: tabular-nums;
  font-weight: 600; border: 1px solid var(--edge); }
ol.layout li.kept { background: var(--kept); border-color: var(--kept); color: #201300; }
ol.layout li.linear { color: var(--quiet); border-color: var(--linear); }
dl { margin: 0; font-size: 0.93rem; }
dl div { display: grid; grid-template-columns: 8.5em 1fr; gap: 0 12px; padding: 3px 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
code, pre { font: 0.86rem/1.45 ui-monospace, "SFMono-Regular", "DejaVu Sans Mono", monospace; }
code { background: var(--code); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
pre { background: var(--code); border-radius: 6px; padding: 12px; margin: 8px 0 0; overflow: auto;
  max-height: 34rem; }
summary { cursor: pointer; padding: 4px 0; font-weight: 600; }
details { margin-top: 8px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
th, td { padding: 4px 12px 4px 0; text-align: left; font-weight: 400; vertical-align: baseline;
  border-top: 1px solid var(--grid); }
thead th { color: var(--quiet); border-top: 0; vertical-align: bottom; }
tbody tr:first-child th, tbody tr:first-child td { border-top-color: var(--edge); }
tbody th { position: sticky; left: 0; background: var(--card); min-width: 7em; }
table.numbers td, table.numbers thead th + th { text-align: right; padding: 4px 0 4px 18px;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
table.numbers thead th + th { white-space: normal; }
tr.group th { font-weight: 600; padding-top: 12px; }
tr:not(.group) th[scope=row] { padding-left: 2px; }
.charts { display: grid; gap: 22px 28px;
  grid-template-columns: 1fr 1fr; }
figure { margin: 0 0 4px; min-width: 0; }
figure.wide { margin: 6px 0 16px; }
figcaption { line-height: 1.35; margin-bottom: 2px; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 0.82rem; color: var(--quiet); }
.legend i { display: inline-block; width: 16px; height: 0; margin-right: 5px;
  vertical-align: middle; border-top: 2.5px solid currentColor; }
.legend i.thin { border-top-width: 1px; }
.legend i.dashed { border-top-style: dashed; }
.legend i.dot { width: 8px; height: 8px; border: 0; border-radius: 50%; background: currentColor; }
.legend i.box { width: 11px; height: 11px; border: 0; border-radius: 2px;
  background: currentColor; }
.frame { display: grid; grid-template-columns: var(--labels) 1fr; padding: 9px 1.2em 0 0;
  font-size: 0.78rem; color: var(--quiet); font-variant-numeric: tabular-nums; }
.frame svg { display: block; width: 100%; height: 190px; overflow: visible;
  border-left: 1px solid var(--edge); border-bottom: 1px solid var(--edge); }
.frame.low svg { height: 110px; }
.ys, .xs { position: relative; }
.xs { grid-column: 2; height: 1.6em; }
.ys span { position: absolute; right: 7px; transform: translateY(50%); line-height: 1; }
.xs span { position: absolute; top: 5px; transform: translateX(-50%); line-height: 1;
  white-space: nowrap; }
.xlabel { text-align: right; font-size: 0.78rem; color: var(--quiet); padding-right: 1.2em; }
svg path { vector-effect: non-scaling-stroke; fill: none; stroke-linecap: round;
  stroke-linejoin: round; }
svg .grid { stroke: var(--grid); stroke-width: 1; stroke-linecap: butt; }
svg .faint { stroke: currentColor; stroke-width: 3; opacity: 0.3; }
svg .line { stroke: currentColor; stroke-width: 2; }
svg .thin { stroke-width: 1; opacity: 0.9; }
svg .dashed { stroke-width: 1.5; stroke-dasharray: 5 5; }
svg .dot { stroke: currentColor; stroke-width: 7; }
svg .error { stroke: var(--text); stroke-width: 1.3; stroke-linecap: butt; }
svg rect { fill: currentColor; }
svg.stack { display: block; width: 100%; height: 18px; margin: 3px 0; border-radius: 4px; }
.spent { margin: 8px 0; }
.teacher { color: var(--teacher); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .warn { color: var(--bad); }
i.kept, rect.kept { color: var(--kept); } i.linear, rect.linear { color: var(--linear); }
.maps { display: flex; flex-wrap: wrap; gap: 18px 36px; margin-bottom: 10px; }
.maps .scroll { flex: 0 1 auto; }
table.heat { border-spacing: 2px; }
table.heat th, table.heat td { border: 0; padding: 4px 7px; min-width: 0; }
table.heat th[scope=row] { padding-left: 0; }
table.heat thead th + th, table.heat td { text-align: center; }
table.heat td { position: relative; min-width: 3.3em; font-variant-numeric: tabular-nums;
  background: var(--code); border-radius: 3px; overflow: hidden; }
table.heat td::before { content: ""; position: absolute; inset: 0; background: var(--heat);
  opacity: var(--v, 0); }
table.heat td span { position: relative; }
table.heat td.strong { color: var(--heat-text); }
table.heat td.none { color: var(--quiet); background: none; }
footer { padding: 0 4px 16px; overflow-wrap: anywhere; }
@media (max-width: 700px) { .charts { grid-template-columns: 1fr; } main { padding: 8px; }
  header, section { padding: 13px; }
  dl div { grid-template-columns: 1fr; padding: 4px 0; } .frame svg { height: 165px; }
  h1 { font-size: 1.35rem; } table { font-size: 0.86rem; }
  table.numbers td, table.numbers thead th + th { padding-left: 12px; }
  .maps table.heat { font-size: 0.82rem; } table.heat { border-spacing: 1px; }
  table.heat td { min-width: 2.4em; } table.heat th, table.heat td { padding: 4px 3px; } }
@media print { html { font-size: 11px; } body { background: #ffffff; }
  h2, caption, figcaption { break-after: avoid; } main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  header, section { border: 0; padding: 6px 0; } figure, tr { break-inside: avoid; }
  .charts { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; }
  .frame svg { height: 140px; } pre { max-height: none; white-space: pre-wrap; } }
)css";

}  // namespace sala
