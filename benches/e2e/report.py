"""What is shown of a run: tables for the terminal, and one HTML file with bar charts, which needs nothing else."""

import html

from goals import BARE, goals, judge
from measures import GROUPS
from results import METRICS, PEAK

# Hues of bars, readable on light and dark: those that always take part, and for further builds and the kernel in turn.
HUES = {"adit": "#2f7fd6", "adit-nospin": "#7db4ea", "wireguard-go": "#d9822b", "gotatun": "#3f9e5a", "boringtun": "#b0589e",
        BARE: "#8a8f98"}
FURTHER_HUES = ("#c2504a", "#5c6bc0", "#9e8a3f", "#3a9aa0")
# Of a bar chart, in pixels.
LABEL, BAR, VALUE, ROW, TOP = 96, 190, 74, 20, 4

STYLE = """
:root { --ink: #1d2127; --dim: #667080; --page: #fff; --line: #dfe3e8; --good: #1d7f43; --bad: #b3312b }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --dim: #98a2b0; --page: #16191d; --line: #333a43; --good: #56c481; --bad: #f0766f } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 1240px; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left; white-space: nowrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem } dt { color: var(--dim) } dd { margin: 0 }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem } figure { margin: 0; width: 360px }
figcaption { font-weight: 600 } figcaption small { color: var(--dim); font-weight: 400 }
svg { color: var(--ink); font: 12px system-ui, sans-serif; fill: currentColor }
"""


def number(value):
    if value is None:
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:.3f}" if size < 0.1 else f"{value:.2f}" if size < 100 else f"{value:.0f}"


def cell(results, name, group, metric):
    """Median, and minimum to maximum; what failed, by the numbers of its reasons."""
    values, mark = results.values(name, metric.name), marked(results, name, group, metric)
    if not values:
        return f"failed{mark}" if mark else "-"
    spread = f" ({number(min(values))}-{number(max(values))})" if len(values) > 1 else ""
    return number(results.median(name, metric.name)) + spread + mark


def marked(results, name, group, metric):
    numbers = results.missing(name, group, metric.name)
    return f" [{', '.join(map(str, numbers))}]" if numbers else ""


def sections(results):
    """Groups that were measured: key, title, and rows of metric and cells."""
    names = results.names
    for key in results.groups:
        group = GROUPS[key]
        rows = [(metric, [cell(results, name, key, metric) for name in names])
                for metric in group.metrics
                if metric.shown and any(
                    results.values(name, metric.name) or results.missing(name, key, metric.name) for name in names)]
        if rows:
            yield key, group.title, rows
    if any(results.values(name, PEAK.name) for name in names):
        yield "", "Memory", [(PEAK, [cell(results, name, "", PEAK) for name in names])]


def title(metric):
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def lines(rows, header):
    """Rows of words as the lines of a table in Markdown."""
    rows = [header, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    made = ["| " + " | ".join(word.ljust(width) for word, width in zip(row, widths)) + " |" for row in rows]
    return [made[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *made[1:]]


def verdicts(results):
    """Goals that this run could look at."""
    measured = {metric.name: key for key in results.groups for metric in GROUPS[key].metrics} | {PEAK.name: ""}
    found = []
    for goal in goals():
        if goal.metric not in measured:
            continue
        failed = bool(results.missing(goal.us, measured[goal.metric], goal.metric))
        verdict = judge(goal, METRICS[goal.metric], results.median, failed)
        if failed or verdict.ours is not None:
            found.append(verdict)
    return found


GOAL_COLUMNS = ["goal", "ours", "other", "ratio", "floor", "aim", "result"]


def goal_row(verdict):
    goal, metric = verdict.goal, METRICS[verdict.goal.metric]
    sign = ">=" if metric.more else "<="
    bound = lambda value: "" if value is None else f"{sign} {value:g}{' x' if goal.other else ''}"
    ratio = "" if verdict.ratio is None else f"{verdict.ratio:.2f}"
    theirs = f"{verdict.other} {number(verdict.theirs)}" if goal.other else ""
    ours = f"{number(verdict.ours)}" if goal.us == "adit" else f"{goal.us} {number(verdict.ours)}"
    return [title(metric), ours, theirs, ratio, bound(goal.floor), bound(goal.aim), str(verdict)]


def text(results, facts):
    made = [f"{key:10} {value}" for key, value in facts]
    made += ["", "Median (minimum-maximum)."]
    for _, heading, rows in sections(results):
        words = [[title(metric), *cells] for metric, cells in rows]
        made += ["", f"## {heading}", "", *lines(words, ["", *results.names])]
    found = verdicts(results)
    if found:
        made += ["", "## Goals", "", *lines([goal_row(verdict) for verdict in found], GOAL_COLUMNS)]
    if results.failures:
        made += ["", "## Failed", "", *(f"[{n}] {f}" for n, f in enumerate(results.failures, 1))]
    return "\n".join(made)


def chart(results, group, metric):
    """Horizontal bars, a line over each from the minimum to the maximum; a word where a bar is missing.

    The bare link is off the scale of tunnels in bulk: its bar ends at the edge then, and its figure says the rest.
    """
    marks = {name: marked(results, name, group, metric) for name in results.names}
    names = [name for name in results.names if results.values(name, metric.name) or marks[name]]
    scaled = [name for name in names if name != BARE] or names
    largest = max((value for name in scaled for value in results.values(name, metric.name)), default=0) or 1
    further = [name for name in results.names if name not in HUES]
    height = TOP * 2 + ROW * len(names)
    made = [f'<svg width="{LABEL + BAR + VALUE}" height="{height}" role="img" aria-label="{html.escape(title(metric))}">']
    for row, name in enumerate(names):
        values, top = results.values(name, metric.name), TOP + row * ROW
        at = lambda value: LABEL + BAR * min(value / largest, 1)
        median, middle = results.median(name, metric.name), top + ROW / 2
        made.append(f'<text x="{LABEL - 6}" y="{middle + 4}" text-anchor="end">{html.escape(name)}</text>')
        if not values:
            made.append(f'<text x="{LABEL}" y="{middle + 4}" fill="var(--bad)">failed{marks[name]}</text>')
            continue
        hue = HUES.get(name) or FURTHER_HUES[further.index(name) % len(FURTHER_HUES)]
        made += [
            f'<rect x="{LABEL}" y="{top + 3}" width="{at(median) - LABEL:.1f}" height="{ROW - 6}" rx="2" fill="{hue}"/>',
            f'<line x1="{at(min(values)):.1f}" x2="{at(max(values)):.1f}" y1="{middle}" y2="{middle}" stroke="currentColor" '
            'stroke-opacity=".6"/>',
            f'<text x="{LABEL + BAR + 6}" y="{middle + 4}">{"» " if median > largest else ""}{number(median)}{marks[name]}</text>',
        ]
    better = {True: "more is better", False: "less is better", None: ""}[metric.more]
    caption = f"{html.escape(metric.title)} <small>{metric.unit}{' · ' if better and metric.unit else ''}{better}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{''.join(made)}</svg></figure>"


def html_table(header, rows, mark=lambda row, column: ""):
    body = "".join(
        f"<tr>{''.join(f'<td{mark(row, n)}>{html.escape(word)}</td>' for n, word in enumerate(row))}</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(word)}</th>" for word in header)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def verdict_class(row, column):
    if column != len(row) - 1 or row[-1] == "not measured":
        return ""
    return ' class="good"' if row[-1] in ("met", "aim met") else ' class="bad"'


def page(results, facts):
    made = ["<!doctype html><html lang=en><meta charset=utf-8><title>adit: side by side</title>",
            '<meta name=viewport content="width=device-width">', f"<style>{STYLE}</style>",
            "<h1>Implementations of WireGuard side by side</h1>",
            f"<dl>{''.join(f'<dt>{key}<dd>{html.escape(value)}' for key, value in facts)}</dl>",
            "<p>Bars and figures are medians over the rounds; the line over a bar goes from the minimum to the maximum. "
            "Compare figures of one run only.</p>"]
    found = verdicts(results)
    if found:
        made += ["<h2>Goals</h2>", html_table(GOAL_COLUMNS, [goal_row(verdict) for verdict in found], verdict_class)]
    for group, heading, rows in sections(results):
        made += [f"<h2>{html.escape(heading)}</h2>", '<div class="charts">',
                 *(chart(results, group, metric) for metric, _ in rows), "</div><details><summary>Figures</summary>",
                 html_table(["", *results.names], [[title(metric), *cells] for metric, cells in rows]), "</details>"]
    if results.failures:
        made += ["<h2>Failed</h2>",
                 html_table(["", ""], [(f"[{n}]", str(failed)) for n, failed in enumerate(results.failures, 1)])]
    return "\n".join(made) + "\n</html>\n"
