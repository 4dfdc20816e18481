"""The page's colours and layout.  Checked for the common kinds of colour blindness; light, dark and print."""

# One colour per group on maps and strips, readable on white and on near-black; repeats after the last.
GROUP_COLORS = ("#2f6fd6", "#e2ad78", "#2b7d42", "#e27893", "#23b6e7", "#983a81", "#64810e", "#5423e7")
OTHER_COLOR = "#8b949e"  # groups that were not used, photos of the database
QUERY_COLORS = ("#12996a", "#e08a00", "#d9381f")  # found first, found later, missed
NEUTRAL_COLOR = "#2f6fd6"

_GROUP_RULES = "\n".join(f".g{number}{{fill:{color}}}" for number, color in enumerate(GROUP_COLORS))

STYLE = """
:root{color-scheme:light;--page:#f7f7f5;--card:#fff;--ink:#1b2026;--soft:#59626d;--rule:#dde1e6;--tint:#eef4fc;
--right:#0b7a4b;--wrong:#c2361a;--s0:#0b5fc0;--s1:#b34700;--s2:#00725a;--s3:#a2307e;--s4:#5b4a00;--s5:#5a5f66}
@media screen and (prefers-color-scheme:dark){
:root{color-scheme:dark;--page:#101318;--card:#171b21;--ink:#e8ebee;--soft:#a3adb8;--rule:#2f3740;--tint:#1a2a3f;
--right:#45d19a;--wrong:#ff7a5c;--s0:#6cb2ff;--s1:#ff9f5a;--s2:#3fd0a4;--s3:#f28ccb;--s4:#e6d36a;--s5:#aab2bc}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 48px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 10px;overflow-wrap:anywhere}
h2{font-size:1.25rem;line-height:1.3;margin:0 0 4px}
h3{font-size:1rem;margin:22px 0 2px}
p{margin:0 0 10px;max-width:72ch}
.soft,figcaption,footer{color:var(--soft);font-size:.9rem}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:20px;margin:20px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:12px;margin:20px 0}
.figure{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 14px}
.figure b{display:block;font-size:1.6rem;line-height:1.25;font-variant-numeric:tabular-nums}
.figure span{color:var(--soft);font-size:.85rem;line-height:1.3;display:block}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:20px;align-items:start}
figure{margin:0}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--rule);vertical-align:top}
th:first-child,td:first-child,.text{text-align:left;overflow-wrap:anywhere}
thead th{color:var(--soft);font-weight:600;font-size:.88rem;white-space:nowrap}
tbody th{font-weight:400;min-width:8em}
th small{color:var(--soft);font-weight:400;margin-left:.4em}
tr.ours{background:var(--tint)}
tr.ours th,tr.ours td{font-weight:700}
svg{display:block;width:100%;height:auto}
svg text{font-size:13px;fill:var(--ink)}
svg .tick,svg .title,svg .note{fill:var(--soft)}
svg .tick{font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule);stroke-width:1;fill:none}
.axis{stroke:var(--soft);stroke-width:1.2;fill:none}
.leader{stroke:var(--rule);stroke-width:1;fill:none}
.threshold{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:4 4;fill:none}
.place{display:grid;grid-template-columns:minmax(0,2.1fr) minmax(200px,1fr);gap:20px;margin-top:16px}
.map img{display:block;width:100%;height:auto;border:1px solid var(--rule);border-radius:6px}
.map .sharp{image-rendering:pixelated}
.scale{display:flex;align-items:center;gap:8px;margin-top:6px;color:var(--soft);font-size:.85rem}
.scale i{height:7px;border:2px solid var(--soft);border-top:0}
.scale span{margin-left:auto}
.place figcaption{margin:10px 0}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
path.line,path.strong,path.faint{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
path.strong{stroke-width:3}
path.faint{stroke-width:1;opacity:.45}
.marker{fill:var(--c);stroke:var(--card);stroke-width:1}
svg text.label{fill:var(--c)}
svg text.bold{font-weight:700}
.legend{list-style:none;margin:0;padding:0;font-size:.9rem;line-height:1.35}
.legend li{display:flex;gap:8px;margin-bottom:5px}
.legend svg{flex:none;width:14px;height:14px;margin-top:2px}
.query{border-top:1px solid var(--rule);padding:12px 0 10px;break-inside:avoid}
.query p{font-size:.9rem;margin:0 0 6px;max-width:none}
.row{display:grid;grid-template-columns:repeat(var(--tiles),minmax(0,1fr));gap:8px;align-items:start}
.tile img{display:block;width:100%;height:auto;max-height:230px;object-fit:contain;border:4px solid var(--soft);
border-radius:5px;background:var(--page)}
.tile.right img{border-color:var(--right)}
.tile.wrong img{border-color:var(--wrong);border-style:dashed}
.tile.answer img,.tile.asked img{border-style:dotted}
.tile.asked img{border-style:solid}
.tile figcaption{font-size:.82rem;line-height:1.35;padding-top:3px}
.tile.right figcaption b{color:var(--right)}
.tile.wrong figcaption b{color:var(--wrong)}
.sign{font-weight:700}
.yes{color:var(--right)}.no{color:var(--wrong)}
summary{cursor:pointer;font-weight:600}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
details table{margin-top:10px}
footer{margin-top:24px}
@media (max-width:520px){main{padding:20px 12px 32px}section{padding:14px 12px}th,td{padding:6px 7px}
.place{grid-template-columns:1fr;gap:10px}.row{grid-template-columns:repeat(3,minmax(0,1fr))}
.figure b{font-size:1.35rem}th small{display:block;margin-left:0}.tiles{grid-template-columns:repeat(2,1fr)}}
@media print{:root{--page:#fff}.pair{grid-template-columns:1fr 1fr}body{font-size:11pt}main{max-width:none;padding:0}
section{border:0;padding:0;break-inside:auto}figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
details::details-content{content-visibility:visible;display:block}}
"""
STYLE += _GROUP_RULES + "\n"
