"""What is announced about pumps and bags, and the batch as it would be if that were true.

`pump_alarms` puts a diagnosis (`twin.estimation.diagnosis`: mass balances) into words, `corrected` replays a batch under it.
`readback_alarms` judges what the pumps say by itself: lost, impossible, restless, or not what was asked. The twin hears of
commands only through the `cmd_id` that a read-back carries; how far such a read-back is from its command is the guard's
business. A read-back without one is the local recipe or an operator's hand, and an operator's hand is a fact and not a
fault: one change and the way back are nobody's alarm.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf

from twin.bioreactor import Control
from twin.estimation.diagnosis import BAGGED, Diagnosis, Explanation
from twin.estimation.health import Alarm, Severity
from twin.evidence import ACTUATORS, ControlApplied
from twin.history import Batch, replay
from twin.inputs import Drive, altered

SURE = 0.9
"""Posterior from which a change is announced."""
CLOGGED = 0.67
"""A pump that delivers less than this share of its read-back is called clogged."""
WORDS: Mapping[str, tuple[Severity, str, str]] = {
    "pump_clogged": ("warning", "{target} delivers {how}", "Check tubing, valve and pump head; weigh what is delivered."),
    "pump_gain": ("warning", "{target} delivers {how}", "Calibrate the pump against the weight of its bag."),
    "wrong_medium": (
        "warning", "{target} in the bag is {factor} times what was announced", "Check the bag's label; assay a sample of it.",
    ),
    "biology_shifted": ("information", "{target} is {factor} times what it was", "Look at the cells; count again."),
}  # fmt: skip
SUSPECTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("perfusion", ("delivery", "stuck_on")),
    ("cytokine_dose", ("delivery", "stuck_on")),
    ("bag", ("bag",)),
    ("cells", ("growth", "uptake", "death", "yield")),
)
"""Who is announced together: kinds of explanation by the culprit."""


def pump_alarms(diagnosis: Diagnosis) -> tuple[Alarm, ...]:
    """What a diagnosis announces: `pump_clogged`, `pump_gain` (channel: the actuator), `wrong_medium`, `biology_shifted`."""
    found: list[Alarm] = []
    for culprit, kinds in SUSPECTS:
        mine = [e for e in diagnosis.ranked if e.kind in kinds and (culprit not in ACTUATORS or e.target == culprit)]
        total = sum(e.posterior for e in mine)
        if total < SURE:
            continue
        top = mine[0]
        code = _code(top)
        severity, text, action = WORDS[code]
        share = (
            f"{top.factor:.3g} whatever is asked" if top.kind == "stuck_on" else f"{top.factor:.2g} of its read-back"
        )
        text = text.format(target=top.target or top.kind, factor=f"{top.factor:.2g}", how=share)
        channel = culprit if culprit in ACTUATORS else ""
        found.append(Alarm(code, channel, top.since, severity, f"{text} (P {total:.2f})", action))
    return tuple(found)


def _code(e: Explanation) -> str:
    if e.kind in ("delivery", "stuck_on"):
        return "pump_clogged" if e.kind == "delivery" and e.factor < CLOGGED else "pump_gain"
    return "wrong_medium" if e.kind == "bag" else "biology_shifted"


def corrected(batch: Batch, e: Explanation, until: float = inf) -> Batch:
    """The batch if a pump or bag had done what `e` says from its onset until `until` [d]; other kinds change nothing.

    A value for asking, not for telling: facts told to it later would not be corrected. Tell the batch itself, and ask anew.
    """
    if e.kind not in ("delivery", "stuck_on", "bag"):
        return batch

    def really(drive: Drive) -> Drive:
        if e.kind == "bag":
            wrong = {name: e.factor * getattr(drive.medium, name) for name in BAGGED[e.target]}
            return drive._replace(medium=drive.medium._replace(**wrong))
        said = float(getattr(drive.control, e.target))
        rate = e.factor if e.kind == "stuck_on" else e.factor * said
        return drive._replace(control=drive.control._replace(**{e.target: rate}))

    position = bisect_left(batch.evidence, e.since, key=lambda m: m.sampled_at)
    return replay(replace(batch, course=altered(batch.course, e.since, until, really)), position)


# --- what the pumps say ------------------------------------------------------------------------------------------------

LOST = 0.5
"""A pump that has been silent for so long [d] while others talk is lost; edges report at least every 6 h."""
RESTLESS = 3
"""So many changes without an occasion within a day: an operator's hand makes two, there and back."""
OCCASION = 0.1
"""A recipe that goes by laboratory results acts on a new one within so much time [d]."""
SAME_RELATIVE, SAME_ABSOLUTE = 0.05, 0.01
"""Rates within this fraction of each other, or of full scale, are the same."""
APART_RELATIVE, APART_ABSOLUTE, APART_FOR = 0.10, 0.02, 0.25
"""A report is not what was asked beyond these; it is announced when no report within so much time [d] was."""

IMPOSSIBLE = 2.0
"""More than so many times the limit of an actuator is no rate of that pump."""

FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "density_steps": ("viable_density", "total_density", "viability"),
    "cspr": ("viable_density", "total_density", "viability"),
    "lactate_p": ("lactate",),
}
"""Channels whose results move the perfusion of a recipe, by its policy (`twin.process.Recipe`)."""

Asked = Callable[[float], Control | None]
"""What the recipe asked of the pumps at a time [d]; None: not known."""


def readback_alarms(batch: Batch, now: float, asked: Asked | None = None) -> tuple[Alarm, ...]:
    """Alarms about what the pumps have said until `now` [d]; the channel is ``readback_ACTUATOR``.

    `readback_lost`, `readback_garbage`, and with `asked` (`controllers.recipes.recipe_control` at the readings known then)
    `readback_unasked`: reports without a command that stay away from the recipe, by an operator's hand or a stuck read-back.
    """
    found: list[Alarm] = []
    limits = batch.process.limits
    full = Control(limits.perfusion_max, limits.feed_max, limits.bleed_max, limits.cytokine_dose_max)
    occasions = _occasions(batch, now)
    for actuator in ACTUATORS:
        said = [c for c in batch.applied if c.actuator == actuator and c.at <= now]
        if not said:
            continue
        scale, name = float(getattr(full, actuator)), f"readback_{actuator}"
        heard = _heard_after(batch, said[-1].at + LOST, now)
        if heard is not None:
            text = f"the pump has said nothing since day {said[-1].at:.2f}, others have"
            found.append(Alarm("readback_lost", name, said[-1].at + LOST, "warning", text, CHECK))
        garbage = _garbage(said, scale, occasions if actuator == "perfusion" else (), now)
        if garbage is not None:
            since, text = garbage
            found.append(Alarm("readback_garbage", name, since, "warning", text, CHECK))
        elif asked is not None and (since := _unasked(said, actuator, scale, asked)) is not None:
            text = f"reports {said[-1].rate:.4g}, which neither a command nor the recipe asks"
            found.append(Alarm("readback_unasked", name, since, "information", text, HAND))
    return tuple(found)


CHECK = "Check the pump's line; the balance rests on what it last said."
HAND = "An operator's hand is a fact; if there was none, the read-back sticks: weigh what is delivered."


def _heard_after(batch: Batch, since: float, now: float) -> float | None:
    """When another device was first heard after `since`, until `now` [d]."""
    times = [m.received_at for m in batch.evidence[bisect_left(batch.evidence, since, key=lambda m: m.sampled_at) :]]
    times += [c.at for c in batch.applied[bisect_right(batch.applied, since, key=lambda c: c.at) :]]
    return min((t for t in times if since < t <= now), default=None)


def _occasions(batch: Batch, now: float) -> Sequence[float]:
    """When the recipe may have moved the perfusion, ascending [d]."""
    recipe = batch.process.recipe
    channels = FOLLOWS.get(recipe.policy, ())
    times = [m.received_at for m in (*batch.superseded, *batch.evidence) if m.channel in channels]
    times += recipe.numbers.get("days", ()) if recipe.policy == "time_steps" else ()
    times += [e.at for e in batch.events if e.kind in ("operator_action", "stage", "batch_start")]
    return sorted(t for t in times if t <= now)


def _garbage(
    said: Sequence[ControlApplied], scale: float, occasions: Sequence[float], now: float
) -> tuple[float, str] | None:
    """Since when a pump has said what no pump does, and what."""
    last = said[-1]
    if last.rate > IMPOSSIBLE * scale > 0.0:
        return last.at, f"reports {last.rate:.4g}, its limit being {scale:g}"
    odd: list[float] = []
    for before, c in pairwise(said):
        if c.at <= now - 1.0 or c.cmd_id is not None or before.cmd_id is not None:
            continue
        if abs(c.rate - before.rate) <= max(SAME_RELATIVE * max(c.rate, before.rate), SAME_ABSOLUTE * scale):
            continue
        k = bisect_right(occasions, c.at + 1e-6)
        if not (k and c.at - occasions[k - 1] <= OCCASION):
            odd.append(c.at)
    if len(odd) < RESTLESS:
        return None
    return odd[0], f"changed {len(odd)} times within a day without a command or a result to act on"


def _unasked(said: Sequence[ControlApplied], actuator: str, scale: float, asked: Asked) -> float | None:
    """Since when a pump has said what neither a command nor the recipe asks; None when its last word does."""
    since: float | None = None
    for c in reversed(said):
        control = asked(c.at)
        if control is None or c.cmd_id is not None:
            break
        wanted = float(getattr(control, actuator))
        if abs(c.rate - wanted) <= APART_ABSOLUTE * scale + APART_RELATIVE * max(c.rate, wanted):
            break
        since = c.at
    return since if since is not None and said[-1].at - since >= APART_FOR - 1e-6 else None
