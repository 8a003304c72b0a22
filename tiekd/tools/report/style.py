"""The style sheet of a report: readable at 360 px, in light and in dark.

The page itself never scrolls sideways. What may be wider than a phone (tables, commands, rows of
images) scrolls in a box of its own or wraps. Colours are variables, and charts use them too.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1c20; --faint: #5b5e66; --line: #d6d8dd; --box: #f4f5f7;
  --accent: #0b5cad; --warn: #8a4b00; --warn-box: #fff4e0;
  --c0: #0072b2; --c1: #c25b00; --c2: #007a5a; --c3: #a3347f; --c4: #6b5b00; --c5: #4b4ba8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #18181b; --ink: #ebebee; --faint: #a0a0a8; --line: #38383e; --box: #202024;
    --accent: #7cc0f5; --warn: #f0c674; --warn-box: #2d2617;
    --c0: #56b4e9; --c1: #e69f00; --c2: #00be8c; --c3: #cc79a7; --c4: #f0e442; --c5: #aaaaff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, ul, ol { margin: .4rem 0 .8rem; }
ul, ol { padding-left: 1.3rem; }
a { color: var(--accent); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.faint, .caption, figcaption { color: var(--faint); font-size: .875rem; }
.label { font-weight: 600; color: var(--warn); }
.note {
  background: var(--warn-box); border-left: 4px solid var(--warn); padding: .5rem .8rem;
  margin: .8rem 0;
}
.note ul { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; }
.tiles div { background: var(--box); padding: .6rem .8rem; border-radius: .4rem; }
.tiles dt { color: var(--faint); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
dl { margin: .4rem 0 .8rem; }
dl > div { display: grid; grid-template-columns: minmax(6rem, 12rem) 1fr; gap: 0 1rem; }
.tiles > div { display: block; }
dt { color: var(--faint); }
dd { margin: 0 0 .2rem; min-width: 0; }
.scroll { overflow-x: auto; max-width: 100%; margin: .2rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.caption { margin: .8rem 0 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; white-space: nowrap; }
th:first-child { text-align: left; }
tbody th { font-weight: 400; white-space: normal; min-width: 7rem; }
td { white-space: nowrap; }
pre {
  background: var(--box); padding: .6rem .8rem; overflow-x: auto; max-width: 100%;
  font-size: .85rem; line-height: 1.45; white-space: pre-wrap;
}
code { font-size: .9em; background: var(--box); padding: 0 .2em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; min-width: 0; }
.charts > figure { max-width: 36rem; }
svg { display: block; width: 100%; height: auto; background: var(--box); }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 5 4; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
.s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.k0 { color: var(--c0); } .k1 { color: var(--c1); } .k2 { color: var(--c2); }
.k3 { color: var(--c3); } .k4 { color: var(--c4); } .k5 { color: var(--c5); }
.keys { list-style: none; padding: 0; margin: .2rem 0; display: flex; flex-wrap: wrap;
  gap: 0 1rem; font-size: .85rem; }
.panels { display: grid; gap: .4rem;
  grid-template-columns: repeat(auto-fit, minmax(min(9.5rem, 48%), 1fr)); }
.panels img { display: block; width: 100%; height: auto; }
.panels.wide { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.frame { margin: 0 0 1.4rem; }
.scales { display: flex; flex-wrap: wrap; gap: .2rem 2rem; margin: .6rem 0; font-size: .85rem; }
.scale { flex: 1 1 16rem; max-width: 24rem; }
.scale img { display: block; width: 100%; height: .9rem; }
.ends { display: flex; justify-content: space-between; }
@media (max-width: 40rem) { dl > div { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { body { max-width: none; } .scroll { overflow: visible; } }
"""
