"""What the Space shows, as HTML: a text's layers, the visits as small charts, the frontier. Without Gradio."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import mean, quantiles

from modeling_pfberxit.serving.layers import Walked

STYLE = f"<style>{Path(__file__).with_name('style.css').read_text(encoding='utf-8')}</style>"
PERIOD, PERIODS = 10, 30  # seconds of a point in a chart; points
Visit = tuple[float, float, int, str]  # when, seconds it took, the layer after which the text left, the setting


def answer(probabilities: Sequence[float] | None, labels: Sequence[str], activation: str) -> tuple[str, str]:
    """In words, and how sure: the label, the labels of several, or the value."""
    if probabilities is None:
        return "unsure", ""
    if activation == "none":
        return ", ".join(f"{value:.3g}" for value in probabilities), ""
    if activation == "sigmoid":
        given = ", ".join(label for label, share in zip(labels, probabilities) if share > 0.5)
        return given or "none of the labels", f"{min(max(share, 1 - share) for share in probabilities):.0%}"
    best = max(range(len(probabilities)), key=lambda label: probabilities[label])
    return labels[best], f"{probabilities[best]:.0%}"


def scale(walked: Walked, tau: float | None) -> tuple[float, float]:
    """The end of the scores' axis and its exponent: small thresholds are drawn wide apart."""
    return max([1.0, *walked.thresholds, tau or 0.0]), 1.0 if walked.above else 0.5


def layers(walked: Walked, labels: Sequence[str], left: int, outcome: Sequence[float] | None, tau: float | None) -> str:
    """A line for each layer, and in front what the text leaves with after layer `left`."""
    label, share = answer(outcome, labels, walked.activation)
    head = f"<h3>{escape(label)} <small>{share} leaves after layer {left} of {walked.exits[-1].layer}</small></h3>"
    rows = "".join(row(exit, walked, labels, left, tau) for exit in walked.exits)
    return f"{STYLE}<div class='pf' role='status'>{head}<ol>{rows}</ol></div>"


def row(exit, walked: Walked, labels: Sequence[str], left: int, tau: float | None) -> str:
    """One layer: its answer, and its score against tau."""
    label, share = answer(exit.probabilities, labels, walked.activation)
    kind = "leaves" if exit.layer == left else "spared" if exit.layer > left else ""
    scores = [float(score) for score in exit.scores if score is not None]
    score = scores[0] if scores else None
    end, power = scale(walked, tau)
    marks = [] if tau is None or not walked.thresholds else [line(place(tau, end, power))]
    if score is not None and (walked.thresholds or abs(score) == float("inf")):
        marks.append(dot(place(score, end, power)))
    number = f"{score:.3g}" if score is not None and abs(score) < float("inf") and walked.thresholds else ""
    return (
        f"<li class='{kind}'><b>{exit.layer}</b><div class='said'><div class='names'><span>{escape(label)}</span>"
        f"<span>{share}</span></div>{bar(exit.probabilities, walked.activation)}</div>"
        f"<svg height='34' aria-hidden='true'>"
        f"<line x1='0' x2='100%' y1='17' y2='17' stroke='var(--pf-line)' stroke-width='2'/>{''.join(marks)}</svg>"
        f"<span>{number}</span></li>"
    )


def bar(probabilities: Sequence[float], activation: str) -> str:
    """How much of the answer's bar is filled; none for values and several labels."""
    return f"<div class='bar' style='width: {max(probabilities):.1%}'></div>" if activation == "softmax" else ""


def place(value: float, end: float, power: float) -> float:
    """Where a value stands on the axis, in per cent."""
    return 100 * min(1.0, max(0.0, value / end)) ** power


def line(at: float) -> str:
    """Tau."""
    return f"<line x1='{at:.1f}%' x2='{at:.1f}%' y1='-6' y2='40' stroke='var(--pf-tau)' stroke-width='2'/>"


def dot(at: float) -> str:
    """A score."""
    return f"<circle cx='{at:.1f}%' cy='17' r='6' fill='var(--pf)'/>"


# ---- visits and frontier ---------------------------------------------------------------------------------------------


def charts(visits: Sequence[Visit], now: float) -> str:
    """The visits of the last five minutes: how many a second, mean depth, the setting most chosen, and p99."""
    bins: list[list[Visit]] = [[] for _ in range(PERIODS)]
    for visit in visits:
        if (ago := int((now - visit[0]) // PERIOD)) < PERIODS:
            bins[PERIODS - 1 - ago].append(visit)
    known = [visit for each in bins for visit in each]
    chosen = Counter(visit[3] for visit in known).most_common(1)
    parts = [
        chart("texts a second", f"{len(bins[-1]) / PERIOD:.1f}", [len(each) / PERIOD for each in bins]),
        chart("mean depth", f"{mean(visit[2] for visit in known):.1f}" if known else "–", [
            mean(visit[2] for visit in each) if each else 0.0 for each in bins]),
        chart("setting", escape(chosen[0][0]) if chosen else "–", []),
        chart("p99", f"{1000 * p99(known):.0f} ms" if known else "–", [p99(each) for each in bins]),
    ]  # fmt: skip
    return f"{STYLE}<div class='pf'><div class='charts'>{''.join(parts)}</div></div>"


def p99(visits: Sequence[Visit]) -> float:
    """Seconds that all but one of a hundred visits took at most; 0 where there is none."""
    times = [visit[1] for visit in visits]
    return quantiles(times, n=100, method="inclusive")[-1] if len(times) > 1 else sum(times)


def chart(title: str, value: str, values: Sequence[float]) -> str:
    """A number and its line."""
    top = max([*values, 1e-9])
    points = " ".join(f"{number},{36 - 34 * each / top:.1f}" for number, each in enumerate(values))
    plot = (
        f"<svg viewBox='0 0 {PERIODS - 1} 38' height='38' preserveAspectRatio='none' aria-hidden='true'><polyline "
        f"points='{points}' fill='none' stroke='var(--pf)' stroke-width='2' vector-effect='non-scaling-stroke'/></svg>"
    )
    return f"<div>{title}<br><b>{value}</b>{plot if values else ''}</div>"


def frontier(points: dict[str, dict], depth: int, active: str) -> str:
    """The operating points, layers run against score or certified agreement, the active one filled."""
    scored = any("score" in point for point in points.values())
    found = {name: (point.get("layers"), height_of(point, scored)) for name, point in points.items()}
    if not scored:
        found["full-depth"] = depth, 1.0
    known = {name: place for name, place in found.items() if None not in place}
    if len(known) < 2:
        return ""
    low, high = min(height for _, height in known.values()), max(height for _, height in known.values())
    at = {
        name: (20 + 270 * layers / depth, 20 + 120 * (high - height) / max(high - low, 1e-9))
        for name, (layers, height) in sorted(known.items(), key=lambda each: each[1])
    }
    path = " ".join(f"{x:.0f},{y:.0f}" for x, y in at.values())
    dots = "".join(spot(name, *at[name], known[name], name == active) for name in at)
    what = "Score" if scored else "Answers as at full depth, at least"
    return (
        f"{STYLE}<div class='pf'>{what}, against the mean number of layers run.<svg viewBox='0 0 340 170' role='img' "
        f"aria-label='Frontier; active: {escape(active, quote=True)}'><polyline points='{path}' fill='none' "
        f"stroke='var(--pf-line)' stroke-width='2'/>{dots}</svg></div>"
    )


def spot(name: str, x: float, y: float, known: tuple[float, float], active: bool) -> str:
    """A point with its name, height and layers."""
    fill, weight = ("var(--pf)", 700) if active else ("none", 400)
    side, beside = ("end", x - 10) if x > 170 else ("start", x + 10)
    return (
        f"<circle cx='{x:.0f}' cy='{y:.0f}' r='5' fill='{fill}' stroke='var(--pf)' stroke-width='2'/>"
        f"<text x='{beside:.0f}' y='{y + 16:.0f}' text-anchor='{side}' font-weight='{weight}'>"
        f"{escape(name)}: {known[1]:.1%} at {known[0]:.1f}</text>"
    )


def height_of(point: dict, scored: bool) -> float | None:
    """A point's score, or the share of answers that are full depth's, as certified."""
    if scored:
        return point.get("score")
    return 1 - point["certificate"]["epsilon"] if "certificate" in point else None
