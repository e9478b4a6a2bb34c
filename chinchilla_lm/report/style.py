"""The style sheet and the script of report.html, kept inside the page so that it needs nothing from anywhere.

Colours: blues for ours, warm ones for baselines (Okabe and Ito, "Color universal design", 2008), green and vermilion
for the verdict, which is always said in words and by a sign as well. Dark is a set of its own, not an inversion; paper
is light. The script moves each `<title>` of a drawing into a label that shows at once; without it the browser shows it.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #191d21; --soft: #59636e; --rule: #dfe3e8; --faint: #f5f7f9;
  --pass: #00694c; --pass-panel: #e9f5f0; --fail: #a83e00; --fail-panel: #fdf0e8;
  --blue: #0072b2; --sky: #3d97cf; --orange: #c98500; --vermilion: #d55e00; --purple: #b3558f;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --ink: #e8ebee; --soft: #a0a9b3; --rule: #323941; --faint: #1c2126;
    --pass: #4fc9a0; --pass-panel: #13251f; --fail: #ff955c; --fail-panel: #2b1c13;
    --blue: #4ba9e0; --sky: #8ccbf0; --orange: #e6b04a; --vermilion: #f0813a; --purple: #d991bd;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
main { max-width: 928px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 1.5rem; line-height: 1.3; font-weight: 600; margin: 0; letter-spacing: -0.01em; text-wrap: balance; }
h1 .word {
  display: block; margin-bottom: 10px;
  font-size: 2.75rem; line-height: 1.1; font-weight: 700; letter-spacing: -0.02em;
}
h2 { font-size: 1.1875rem; line-height: 1.3; font-weight: 650; margin: 56px 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 1rem; font-weight: 600; margin: 24px 0 4px; }
p { margin: 4px 0 0; max-width: 54em; }
.lead { color: var(--soft); margin-bottom: 16px; }
.verdict { border-radius: 12px; padding: 28px 32px 24px; }
.verdict { background: var(--panel); }
.verdict.passed { --panel: var(--pass-panel); --tone: var(--pass); }
.verdict.failed { --panel: var(--fail-panel); --tone: var(--fail); }
.verdict .word { color: var(--tone); }
.verdict .origin { color: var(--soft); font-size: 0.9375rem; margin-top: 10px; }
.verdict figure { margin: 32px 0 16px; }
.verdict p { max-width: none; }
.verdict .said { font-size: 0.9375rem; margin-top: 6px; text-wrap: pretty; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 20px 24px; margin: 28px 0 0; }
.tiles dt { font-size: 0.875rem; color: var(--soft); }
.tiles dd { margin: 0; }
.tiles .big { display: block; font-size: 1.75rem; line-height: 1.25; font-weight: 600; letter-spacing: -0.01em; }
.tiles .small { display: block; white-space: pre-line; font-size: 0.875rem; color: var(--soft); line-height: 1.4; }
figure { margin: 12px 0 0; }
svg { display: block; width: 100%; height: auto; overflow: hidden; }
svg text { font-size: 13px; fill: var(--ink); }
svg .soft, svg .tick { fill: var(--soft); }
svg .strong { font-weight: 600; }
.narrow { display: none; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--soft); }
.interval .strong { font-size: 15px; }
.interval .zone { fill: var(--fail); fill-opacity: 0.15; }
.interval .margin { stroke: var(--fail); stroke-width: 1.5; }
.interval .margin-name { fill: var(--fail); }
.interval .zero { stroke: var(--soft); stroke-dasharray: 2 3; }
.interval .band { fill: var(--tone); fill-opacity: 0.45; }
.interval .point { fill: var(--tone); }
.interval .chip { fill: var(--panel); }
.solid { fill: var(--blue); }
.hollow { fill: none; stroke: var(--soft); stroke-opacity: 0.75; }
.norm { fill: var(--soft); }
.chain .letter { font-size: 11px; font-weight: 650; paint-order: stroke; stroke: var(--page); stroke-width: 2.5px; }
.target { stroke: var(--soft); stroke-dasharray: 2 4; }
.frontier .label, .frontier .strong { paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
.path { fill: none; stroke: currentColor; stroke-opacity: 0.35; stroke-width: 1.5; }
.bar { stroke: currentColor; stroke-width: 1.5; }
.glyph { fill: currentColor; stroke: currentColor; stroke-width: 1.75; stroke-linejoin: round; }
.hollow-glyph { fill: var(--page); }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.arrow { fill: none; stroke: var(--ink); stroke-width: 1.5; }
svg .name { fill: currentColor; }
.m-original, .m-other { color: var(--ink); }
.m-refine, .m-chosen, .m-mix { color: var(--blue); }
.m-single { color: var(--orange); }
.m-dp { color: var(--sky); }
.m-greedy { color: var(--orange); }
.m-top { color: var(--blue); }
.m-one-shot { color: var(--purple); }
.m-stage { color: var(--soft); }
.m-cosine { color: var(--vermilion); }
.mark:hover .solid, .mark:hover .hollow { stroke: var(--ink); stroke-width: 2; stroke-opacity: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 8px 0 0; padding: 0; list-style: none;
  font-size: 0.875rem; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 7px; }
.legend svg { width: auto; flex: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9375rem; line-height: 1.4; }
th { font-weight: 500; color: var(--soft); font-size: 0.875rem; vertical-align: bottom; }
th, td { text-align: right; padding: 8px 0 8px 20px; white-space: nowrap; }
tbody th, thead tr:first-child > :first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid var(--soft); }
tbody td, tbody th { border-bottom: 1px solid var(--rule); vertical-align: top; }
tbody th { color: var(--ink); font-weight: 500; font-size: inherit; }
tbody tr.last-label > * { border-bottom-color: var(--soft); }
.rows tbody tr:last-child > * { border-bottom: 1px solid var(--soft); }
.rows tbody tr:last-child th, .rows tbody tr:last-child .value { font-weight: 650; }
td small { display: block; font-size: 0.8125rem; color: var(--soft); }
td small.better { color: var(--pass); }
td small.worse, td.worse { color: var(--fail); }
td.better { color: var(--pass); }
.tags .group { text-align: center; border-bottom: 1px solid var(--rule); padding-left: 28px; }
.tags .first { padding-left: 36px; }
.tags td.key { font-weight: 600; }
.tags td.soft { color: var(--soft); }
.tags th, .tags td { padding-top: 6px; padding-bottom: 6px; }
.sample { border-top: 1px solid var(--rule); padding: 14px 0 4px; break-inside: avoid; }
.sample h3 { margin: 0; white-space: pre-wrap; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px 32px; }
.pair h4 { margin: 8px 0 0; font-size: 0.8125rem; font-weight: 500; color: var(--soft); }
.pair p { white-space: pre-wrap; font-size: 0.9375rem; margin: 0; }
mark { background: none; color: inherit; text-decoration: underline; text-decoration-color: var(--vermilion);
  text-decoration-thickness: 2px; text-underline-offset: 3px; }
.notes { margin: 8px 0 0; padding-left: 1.2em; max-width: 44em; }
details { border-top: 1px solid var(--rule); padding: 12px 0; }
details:last-of-type { border-bottom: 1px solid var(--rule); }
.folded { margin-top: 56px; }
summary { cursor: pointer; font-weight: 600; }
.facts { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 4px 24px; margin: 12px 0 4px;
  font-size: 0.9375rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.share { display: inline-block; height: 8px; margin-left: 12px; background: var(--blue); opacity: 0.6; }
pre { background: var(--faint); border-radius: 8px; padding: 12px 16px; margin: 12px 0 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 0.875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tip { position: absolute; z-index: 1; pointer-events: none; max-width: 320px; padding: 6px 10px; border-radius: 6px;
  background: var(--ink); color: var(--page); font-size: 0.8125rem; line-height: 1.4; }
@media screen and (max-width: 680px) {
  main { padding: 16px 16px 48px; }
  .verdict { padding: 22px 20px 18px; margin: 0 -4px; }
  h1 { font-size: 1.25rem; }
  h1 .word { font-size: 2.25rem; }
  h2 { margin-top: 44px; }
  .wide { display: none; }
  .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 16px; }
  .tiles .big { font-size: 1.375rem; }
  .pair { grid-template-columns: 1fr; }
  .rows thead { display: none; }
  .rows table, .rows tbody { display: block; }
  .rows tr { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0 12px; padding: 10px 0;
    border-bottom: 1px solid var(--rule); }
  .rows th { grid-column: 1 / -1; font-weight: 650; }
  .rows th, .rows td, .rows tbody tr:last-child > * { border: 0; padding: 4px 0; text-align: left;
    white-space: normal; }
  .rows td::before { content: attr(data-head); display: block; font-size: 0.8125rem; color: var(--soft); }
  .others thead th:not(:first-child), .others td { white-space: normal; padding-left: 10px; }
  .tags th, .tags td { padding-left: 14px; }
  .tags .first, .tags .group { padding-left: 22px; }
  .tags tbody th, .tags thead tr:first-child > :first-child { position: sticky; left: 0; padding-left: 0;
    background: var(--page); }
}
@media print {
  @page { margin: 16mm; }
  html { font-size: 13px; }
  body { font-size: 13px; }
  main { padding: 0; max-width: none; }
  .scroll { overflow: visible; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
  th, td { padding-left: 10px; }
  h2 { margin-top: 36px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3, .lead, summary { break-after: avoid; }
  figure, tr, .verdict, .rows, details { break-inside: avoid; }
  .tip { display: none; }
}
"""

SCRIPT = """
(function () {
  var tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);
  document.querySelectorAll("svg .mark > title").forEach(function (title) {
    title.parentNode.setAttribute("data-tip", title.textContent);
    title.remove();
  });
  document.addEventListener("pointerover", function (event) {
    var mark = event.target.closest("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.getAttribute("data-tip");
    var box = mark.getBoundingClientRect();
    var left = box.left + box.width / 2 - tip.offsetWidth / 2;
    left = Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8));
    var top = box.top - tip.offsetHeight - 8;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = (top < 4 ? box.bottom + 8 : top) + window.scrollY + "px";
  });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (part) { part.open = true; });
  });
})();
"""
