"""How the page looks, and the few lines that let it refresh itself. Both are constants, so the page can say their checksums to
the browser, and nothing else runs (Content-Security-Policy). No address is in them but the page's own.
"""

import base64
import hashlib
from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#1d2125;--soft:#667079;--line:#e3e6e9;--rest:#edeff1;
--blue:#4a7fb5;--pale:#b5cbe2;--green:#3d8f63;--amber:#c98a1b;--red:#c6453b;--violet:#7b6bb0;
--good:#eaf5ee;--watch:#fdf4e3;--bad:#fcebe9}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--card:#1c2024;--ink:#e4e7ea;--soft:#98a2ab;--line:#2b3137;--rest:#2a3036;
--blue:#6b9fd4;--pale:#3d5874;--green:#5db585;--amber:#d9a441;--red:#e06c62;--violet:#9c8dd0;
--good:#1a2b22;--watch:#2e2718;--bad:#351f1e}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:24px 20px 40px}
header{display:flex;flex-wrap:wrap;align-items:baseline;justify-content:space-between;gap:4px 16px;margin:0 0 16px}
h1{font-size:24px;line-height:1.25;font-weight:650;margin:0;overflow-wrap:anywhere}
h2{font-size:17px;font-weight:650;margin:32px 0 10px}
h3{font-size:14px;font-weight:600;margin:0}
p{margin:0}
.soft-text,.unit{color:var(--soft)}
.small{font-size:13px}
header .small{overflow-wrap:anywhere}
.clock{white-space:nowrap}
.clock::before{content:"";display:inline-block;width:8px;height:8px;border-radius:50%;margin-right:7px;background:var(--green)}
.still .clock::before{background:var(--soft)}
.stale .clock::before{background:var(--red)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.cards>.card,.tiles>.card{min-width:0}
.cards+.card{margin-top:12px}
.tiles{display:grid;gap:12px;grid-template-columns:repeat(4,1fr);margin-top:12px}
.tiles .card{padding:13px 16px}
.tiles .value{display:block;font-size:23px;font-weight:620;line-height:1.3;margin:1px 0;white-space:nowrap}
.value.watch{color:var(--amber)}.value.bad{color:var(--red)}
.verdict{border-radius:10px;padding:14px 18px;border:1px solid var(--line)}
.verdict.good{background:var(--good)}.verdict.watch{background:var(--watch)}.verdict.bad{background:var(--bad)}
.verdict strong{font-size:17px;font-weight:650}
.verdict ul{list-style:none;margin:10px 0 0;padding:0;display:grid;gap:8px}
.verdict li{padding-left:20px;position:relative;overflow-wrap:anywhere}
.verdict li::before{content:"";position:absolute;left:2px;top:.5em;width:9px;height:9px;border-radius:50%;background:var(--amber)}
.verdict li.bad::before{background:var(--red)}
.head{display:flex;flex-wrap:wrap;justify-content:space-between;align-items:baseline;gap:2px 12px;margin-bottom:8px}
svg{display:block;width:100%}
svg.bar{height:12px;border-radius:6px}
svg.thin{height:7px;border-radius:4px}
svg.area{height:96px;overflow:visible}
.rest{fill:var(--rest)}.blue{fill:var(--blue)}.pale{fill:var(--pale)}.green{fill:var(--green)}.amber{fill:var(--amber)}
.red{fill:var(--red)}.violet{fill:var(--violet)}
.grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.stroke{fill:none;stroke-width:1.75;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.blue.stroke{stroke:var(--blue)}.amber.stroke{stroke:var(--amber)}.green.stroke{stroke:var(--green)}.violet.stroke{stroke:var(--violet)}
.soft{opacity:.16}
.axis{display:flex;justify-content:space-between;margin-top:4px}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;padding:0;list-style:none}
.legend li::before{content:"";display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px;background:var(--rest)}
.legend .k-blue::before{background:var(--blue)}.legend .k-pale::before{background:var(--pale)}
.legend .k-green::before{background:var(--green)}.legend .k-amber::before{background:var(--amber)}
.legend .k-red::before{background:var(--red)}.legend .k-violet::before{background:var(--violet)}
.rows{display:grid;grid-template-columns:minmax(0,1fr);gap:12px;margin:0;padding:0;list-style:none}
.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px 32px}
.row{display:grid;gap:4px;min-width:0;align-content:start}
.row .line{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;align-items:baseline}
.row .line>:first-child{min-width:0;max-width:100%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.row .line>:last-child{white-space:nowrap}
.away{color:var(--red)}
.chip{font-size:12px;border:1px solid var(--line);border-radius:9px;padding:0 8px;color:var(--soft);margin-left:6px}
.chip.bad{color:var(--red);border-color:var(--red)}.chip.watch{color:var(--amber);border-color:var(--amber)}
.domain+.domain{margin-top:16px;padding-top:14px;border-top:1px solid var(--line)}
.scroll{overflow-x:auto;margin:0 -18px;padding:0 18px}
table{border-collapse:collapse;width:100%;font-size:14px}
caption{text-align:left;font-size:14px;font-weight:600;padding:0 0 8px}
th{font-weight:500;color:var(--soft);font-size:13px;text-align:left;padding:0 14px 6px 0;white-space:nowrap}
td{padding:7px 14px 7px 0;border-top:1px solid var(--line);white-space:nowrap}
td.n,th.n{text-align:right}
td:last-child,th:last-child{padding-right:0}
td.name{max-width:320px;overflow:hidden;text-overflow:ellipsis}
.dot::before{content:"";display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:8px;background:var(--green)}
.dot.watch::before{background:var(--amber)}.dot.bad::before{background:var(--red)}
footer{margin-top:28px}
form{max-width:420px;margin:18vh auto 0}
input,button{font:inherit;width:100%;padding:9px 12px;border-radius:8px;border:1px solid var(--line);background:var(--card);
color:inherit}
button{margin-top:10px;background:var(--blue);border-color:var(--blue);color:#fff;cursor:pointer}
@media(max-width:760px){.tiles{grid-template-columns:repeat(2,1fr)}}
@media(max-width:460px){main{padding:16px 12px 28px}.card{padding:13px 14px}.scroll{margin:0 -14px;padding:0 14px}
td.name{white-space:normal;overflow-wrap:anywhere;min-width:110px}
.tiles .card{padding:11px 13px}.tiles .value{font-size:20px}}
"""

SCRIPT: Final = """
const EVERY_MS = 2000, PATIENCE_MS = 10000;
async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.pathname, {cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS)});
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.statusText);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of fresh.querySelectorAll("[data-part]")) {
        const shown = document.getElementById(part.id);
        if (shown && shown.innerHTML !== part.innerHTML) {
          const lefts = [...shown.querySelectorAll(".scroll")].map(one => one.scrollLeft);
          shown.className = part.className;
          shown.innerHTML = part.innerHTML;
          shown.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = lefts[index] || 0; });
        }
      }
      document.body.classList.remove("stale");
    } catch (error) {
      document.body.classList.add("stale");
    }
  }
  setTimeout(refresh, EVERY_MS);
}
setTimeout(refresh, EVERY_MS);
"""


def checksum(text: str) -> str:
    """As a Content-Security-Policy has it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
