"""The report page: one HTML file that carries its style and its plots and asks nothing of the network.

Every text that comes from data goes through `html.escape`; the content security policy allows no script at all.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from service.report import health_plots, plots
from service.report.data import Criterion, Decided, Outcome, ReportData, Verdict

VERDICTS: Mapping[Verdict, str] = {
    "passed": "Meets every criterion", "failed": "Misses a criterion", "running": "Running", "ended": "Ended",
}  # fmt: skip

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="celltwin">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report of `data` to `path` (folders are made) and answer the path. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(data), encoding="utf-8")
    return path


def render(data: ReportData) -> str:
    """The whole page. The same data give the same bytes."""
    parts = [
        _header(data),
        _remarks(data),
        _outcome(data),
        _figure_section(
            "What happened in the vessel", plots.estimates(data),
            "The belief at each time rests only on what had arrived by then. Dashed orange-red lines are limits.",
        ),
        _figure_section(
            "What the pumps did", plots.inputs(data), "Read back from the pumps, not what they were asked to do."
        ),
        _figure_section(
            "How sure the twin was", plots.probabilities(data),
            "Each day's forecast runs an ensemble of futures under the plan in force and counts those that meet each criterion "
            "at harvest.",
        ),
        _figure_section(
            "An early forecast, held to account", plots.forecast(data),
            "The 90 % band should hold what came later nine times in ten. A band made under one plan cannot foresee later "
            "changes of plan.",
        ),
        _figure_section(
            "What the twin learnt about this donor", plots.parameters(data),
            "Parameters start at the population's spread and narrow as far as the data allow; a band that stays wide says "
            "that routine data do not show this parameter.",
        ),
        _figure_section(
            "Which readings the twin believed", health_plots.verdicts(data),
            "Every reading is held against what was expected of it. Held back are readings of a probe that is stuck, drifts or "
            "stands alone against all others, and values that would fit in another unit; one that came after a newer one is not among "
            "them. Bars: how far a fact that came late, or a "
            "correction, moved the belief.",
        ),
        _figure_section(
            "Whether the twin's own error bars hold", health_plots.consistency(data),
            "Mean of squared innovations over their stated variance, over one day: 1 when the bands are as wide as they should "
            "be, above the grey band (99 % bounds) when they are too narrow, below it when too wide.",
        ),
        _decisions(data.decisions),
        _alerts(data),
        _provenance(data),
    ]  # fmt: skip
    style = files("service.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(p for p in parts if p)
    return _PAGE.format(policy=_POLICY, title=escape(f"{data.batch} · celltwin"), style=style, body=body)


def svg(figure: Figure) -> str:
    """A figure as inline SVG: sharp at any size, its text selectable, the same bytes for the same figure."""
    stream = io.StringIO()
    with mpl.rc_context({**plots.STYLE, "svg.hashsalt": "celltwin"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(
        r' id="(?:figure|axes|patch|line2d|matplotlib\.axis|xtick|ytick|text|legend|FillBetween\w*)_\d+"', "", text
    )
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)  # a hundredth of a point is finer than any screen
    return re.sub(r'(<svg [^>]*?) width="[^"]*"|(?<=svg) height="[^"]*"', r"\1", text, count=1)


def number(value: float | None, digits: int = 3) -> str:
    """A number as a person reads it; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def _times(unit: str) -> str:
    """A unit to stand after a number: a power of ten needs its multiplication sign."""
    text = plots.pretty_unit(unit)
    return f"× {text}" if text.startswith("10") else text


def _header(data: ReportData) -> str:
    cards: list[tuple[str, str, str]] = []
    if (o := data.outcome) is not None:
        cards.append(("Harvest" if o.harvested else "End", "day " + number(o.day), ""))
        cards += [(plots.title(c.cqa), number(c.value), _times(c.unit)) for c in o.criteria]
        if o.medium is not None:
            cards.append(("Medium perfused", number(o.medium), "vessel volumes"))
    else:
        cards.append(("Day", number(data.until), "since inoculation"))
    if data.p_release is not None and data.p_release.value.size:
        last = float(data.p_release.value[-1])
        cards.append(("P(release), last forecast", f"{last:.0%}".replace("%", " %"), ""))
    facts = " · ".join(f"{escape(k)} {escape(v)}" for k, v in data.facts.items() if v)
    began = f"inoculated {data.started:%Y-%m-%d %H:%M} UTC" if data.started is not None else ""
    lead = " · ".join(x for x in (facts, escape(began), f"policy {escape(data.policy)}" if data.policy else "") if x)
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}{f' <small>{escape(unit)}</small>' if unit else ''}</dd></div>"
        for k, v, unit in cards
    )
    return (
        f'<header><p class="eyebrow">Batch report · {escape(data.origin)}</p><h1>{escape(data.batch)}</h1>'
        f'<span class="badge {data.verdict}">{VERDICTS[data.verdict]}</span></header>\n'
        f'<p class="lead">{lead}</p>\n<dl class="cards">{items}</dl>'
    )


def _section(title: str, inner: str, note: str = "", kind: str = "") -> str:
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{said}{inner}</section>'


def _figure_section(title: str, figure: Figure | None, note: str = "") -> str:
    return (
        ""
        if figure is None
        else _section(title, f'<figure role="img" aria-label="{escape(title)}">{svg(figure)}</figure>', note)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """A table; cells are HTML already, headings are text."""
    right = set(numeric)
    mark = lambda i: ' class="n"' if i in right else ""  # noqa: E731 - one use, here
    heads = "".join(f"<th{mark(i)}>{escape(h)}</th>" for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{mark(i)}>{c}</td>" for i, c in enumerate(r)) + "</tr>" for r in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _remarks(data: ReportData) -> str:
    if not data.remarks:
        return ""
    return _section("Read this first", "<ul>" + "".join(f"<li>{escape(r)}</li>" for r in data.remarks) + "</ul>")


def _met(criterion: Criterion) -> str:
    return {True: '<span class="yes">✓ met</span>', False: '<span class="no">✗ missed</span>', None: "not known"}[
        criterion.met
    ]


def _outcome(data: ReportData) -> str:
    if data.outcome is None:
        return ""
    rows = [
        (
            escape(plots.title(c.cqa)),
            f"{number(c.value)} {escape(_times(c.unit))}",
            f"{'≥' if c.limit.sense == 'at_least' else '≤'} {number(c.limit.value)}",
            _met(c),
        )
        for c in data.outcome.criteria
    ]
    inner = (
        _table(
            ("criterion", "at harvest" if data.outcome.harvested else "at the end", "limit", ""), rows, numeric=(1, 2)
        )
        if rows
        else ""
    )
    if data.others:
        inner += '<p class="note"><br>The same donor, the same plant, under other policies:</p>'
        inner += _compare((data.outcome, *data.others))
    return _section("Outcome", inner) if inner else ""


def _compare(outcomes: Sequence[Outcome]) -> str:
    names = [c.cqa for c in outcomes[0].criteria]
    rows: list[tuple[str, ...]] = []
    for k, o in enumerate(outcomes):
        by = {c.cqa: c for c in o.criteria}
        cells = [
            f'<span class="{"" if by[n].met is None else "yes" if by[n].met else "no"}">{number(by[n].value)}</span>'
            if n in by
            else "–"
            for n in names
        ]
        name = f"<b>{escape(o.policy)}</b>" if k == 0 else escape(o.policy)
        verdict = {"passed": '<span class="yes">✓ pass</span>', "failed": '<span class="no">✗ fail</span>'}.get(
            o.verdict, "–"
        )
        rows.append((name, verdict, number(o.day), *cells, number(o.medium)))
    head = ("policy", "", "day", *(plots.title(n) for n in names), "medium [volumes]")
    return _table(head, rows, numeric=range(2, 4 + len(names)))


def _decisions(decisions: Sequence[Decided]) -> str:
    if not decisions:
        return ""
    rows: list[tuple[str, ...]] = []
    for d in decisions:
        rates = ", ".join(f"{plots.title(k).lower()} {number(v)}" for k, v in d.rates.items() if v) or "all rates 0"
        said = "harvest" if d.harvest else "override" if d.sent else "recipe holds"
        reasons = "".join(f"<span>{escape(r)}</span>" for r in d.reasons)
        rows.append((f"{d.at:.2f}", said, escape(d.status), escape(rates), f'<div class="reasons">{reasons}</div>'))
    sent = sum(d.sent for d in decisions)
    table = _table(("day", "verdict", "plan", "first move", "reasons"), rows, numeric=(0,))
    note = f"{len(decisions)} decisions, {sent} of them left the twin as expiring overrides; otherwise the local recipe holds."
    return _section("Decisions, with their reasons", f'<div class="log">{table}</div>', note, kind="long")


def _alerts(data: ReportData) -> str:
    if not data.alerts:
        return ""
    rows = [(f"{a.at:.2f}", escape(a.severity), escape(a.code), escape(a.message)) for a in data.alerts]
    return _section("Alarms", _table(("day", "severity", "code", "message"), rows, numeric=(0,)), kind="long")


def _provenance(data: ReportData) -> str:
    if not data.provenance:
        return ""
    rows = [(escape(k), f'<span class="hash">{escape(v)}</span>') for k, v in data.provenance.items()]
    return _section("Provenance", _table(("what", "value"), rows))
