"""Units at the rim: one number and its unit string in, one number in the channel's canonical unit out, or a refusal.

The usual unit strings are a table lookup; anything else is parsed by pint (imported on first need) and must have the
right dimension. Nothing is guessed: an absent, unknown or dimensionally wrong unit raises `UnitError`, and a flow in
volume per time needs the working volume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "density", "fraction", "saturation", "molar", "activity", "capacitance", "ph", "oxygen_uptake",
    "temperature", "mass", "length", "flow", "dose", "switch",
]  # fmt: skip


class UnitError(ValueError):
    """A value whose unit is absent, unknown or of the wrong dimension; one line, with the units that would do."""


KIND: Mapping[str, Kind] = MappingProxyType(
    {
        "viable_density": "density",
        "dead_density": "density",
        "total_density": "density",
        "viability": "fraction",
        "car_fraction": "fraction",
        "exhausted_fraction": "fraction",
        "glucose": "molar",
        "lactate": "molar",
        "glutamine": "molar",
        "ammonia": "molar",
        "raman_glucose": "molar",
        "raman_lactate": "molar",
        "cytokine": "activity",
        "capacitance": "capacitance",
        "ph": "ph",
        "do": "saturation",
        "oxygen_uptake": "oxygen_uptake",
        "temperature": "temperature",
        "weight": "mass",
        "diameter": "length",
        "perfusion": "flow",
        "feed": "flow",
        "bleed": "flow",
        "cytokine_dose": "dose",
        "harvest": "switch",
    }
)
"""Dimension of every channel and actuator."""

_UNIT: Mapping[Kind, str] = {
    "density": "1e6 cells/mL", "fraction": "dimensionless", "saturation": "percent", "molar": "mM",
    "activity": "IU/mL", "capacitance": "pF/cm", "ph": "pH", "oxygen_uptake": "mM/h", "temperature": "degC",
    "mass": "kg", "length": "um", "flow": "1/d", "dose": "IU/mL/d", "switch": "dimensionless",
}  # fmt: skip

CANONICAL: Mapping[str, str] = MappingProxyType({name: _UNIT[kind] for name, kind in KIND.items()})
"""Canonical unit of every channel and actuator: what all values inside the twin are in."""

MOLAR_MASS: Mapping[str, float] = MappingProxyType(
    {"glucose": 180.156, "raman_glucose": 180.156, "lactate": 89.07, "raman_lactate": 89.07, "glutamine": 146.14,
     "ammonia": 17.03, "oxygen_uptake": 31.998}
)  # fmt: skip
"""Molar mass [g/mol] behind ``g/L``. Lactate is the anion (89.07), which is what enzymatic analysers are calibrated in; a
result stated as lactic acid (90.08) comes out 1.1 % high. Ammonia is NH3."""

_ACCEPTED: Mapping[Kind, str] = {
    "density": "1e6 cells/mL, cells/mL", "fraction": "percent, dimensionless", "saturation": "percent, dimensionless",
    "molar": "mM, g/L", "activity": "IU/mL", "capacitance": "pF/cm", "ph": "pH", "oxygen_uptake": "mM/h",
    "temperature": "degC, K", "mass": "kg, g", "length": "um", "flow": "1/d, mL/h with the volume",
    "dose": "IU/mL/d, IU/h with the volume", "switch": "dimensionless",
}  # fmt: skip


class _Affine(NamedTuple):
    """canonical = scale * value + offset, divided by the volume in litres where `per_volume`."""

    scale: float
    offset: float = 0.0
    per_volume: bool = False


_TABLE: Mapping[Kind, Mapping[str, _Affine]] = {
    "density": {
        **dict.fromkeys(
            ("1e6 cells/mL", "1e6 cells/ml", "1e6/mL", "1e6/ml", "10^6 cells/mL", "1e9 cells/L"), _Affine(1.0)
        ),
        **dict.fromkeys(("cells/mL", "cells/ml", "cell/mL", "1/mL", "1/ml"), _Affine(1e-6)),
        "1e5 cells/mL": _Affine(0.1),
        "cells/L": _Affine(1e-9),
    },
    "fraction": {"dimensionless": _Affine(1.0), "1": _Affine(1.0), "percent": _Affine(0.01), "%": _Affine(0.01)},
    "saturation": {"percent": _Affine(1.0), "%": _Affine(1.0), "dimensionless": _Affine(100.0)},
    "molar": {
        "mM": _Affine(1.0),
        "mmol/L": _Affine(1.0),
        "uM": _Affine(1e-3),
        "umol/L": _Affine(1e-3),
        "M": _Affine(1e3),
    },
    "activity": {"IU/mL": _Affine(1.0), "IU/ml": _Affine(1.0), "IU/L": _Affine(1e-3), "kIU/mL": _Affine(1e3)},
    "capacitance": {"pF/cm": _Affine(1.0), "nF/m": _Affine(10.0)},
    "ph": {"pH": _Affine(1.0)},
    "oxygen_uptake": {"mM/h": _Affine(1.0), "mmol/L/h": _Affine(1.0), "mM/d": _Affine(1.0 / 24.0)},
    "temperature": {"degC": _Affine(1.0), "\N{DEGREE SIGN}C": _Affine(1.0), "K": _Affine(1.0, -273.15)},
    "mass": {"kg": _Affine(1.0), "g": _Affine(1e-3)},
    "length": {"um": _Affine(1.0), "mm": _Affine(1e3), "nm": _Affine(1e-3)},
    "flow": {
        **dict.fromkeys(("1/d", "1/day", "VVD", "vvd", "d^-1"), _Affine(1.0)),
        "1/h": _Affine(24.0),
        "mL/h": _Affine(0.024, per_volume=True),
        "mL/min": _Affine(1.44, per_volume=True),
        "mL/d": _Affine(1e-3, per_volume=True),
        "L/d": _Affine(1.0, per_volume=True),
        "L/h": _Affine(24.0, per_volume=True),
    },
    "dose": {
        "IU/mL/d": _Affine(1.0),
        "IU/mL/h": _Affine(24.0),
        "IU/d": _Affine(1e-3, per_volume=True),
        "IU/h": _Affine(0.024, per_volume=True),
    },
    "switch": {"dimensionless": _Affine(1.0), "1": _Affine(1.0)},
}

_PINT_UNIT: Mapping[Kind, str] = {
    "density": "megacell/milliliter", "fraction": "dimensionless", "saturation": "percent", "molar": "millimolar",
    "activity": "IU/milliliter", "capacitance": "picofarad/centimeter", "oxygen_uptake": "millimolar/hour",
    "temperature": "degC", "mass": "kilogram", "length": "micrometer", "flow": "1/day", "dose": "IU/milliliter/day",
}  # fmt: skip
_SAFE = re.compile(r"[A-Za-z0-9_%./*^ ()+\-]{1,48}")
_UNSAFE_POWER = re.compile(r"\)\s*\^|\^(?!\s*[-+]?\d{1,2}(?![\d.eE]|\s*\^))")
_LEADING_NUMBER = re.compile(r"\s*[-+]?[\d.]")


def to_canonical(channel: str, value: float, unit: str | None, *, volume_l: float | None = None) -> float:
    """`value` in `unit` as a number in ``CANONICAL[channel]``; `channel` may be an actuator.

    `volume_l` is the working volume [L], needed only where a flow or a dose comes as volume or activity per time.
    Raises UnitError for an unknown channel, a value that is not finite, a unit that is absent, unknown or of the wrong
    dimension, and a missing or senseless volume.
    """
    if not math.isfinite(value):
        raise UnitError(f"{channel}: {value!r} is not a finite number")
    scale, offset, per_volume = _affine(channel, unit)
    result = scale * value + offset
    if per_volume:
        if volume_l is None or not (math.isfinite(volume_l) and volume_l > 0):
            raise UnitError(
                f"{channel}: {unit!r} needs the working volume in litres, got {volume_l!r}; or give {CANONICAL[channel]}"
            )
        result /= volume_l
    if not math.isfinite(result):
        raise UnitError(f"{channel}: {value!r} {unit} is too large to convert")
    return result


def scale_of(channel: str, unit: str | None) -> float:
    """Factor that carries a difference or a standard deviation in `unit` to the canonical unit (no volume needed)."""
    scale, _, per_volume = _affine(channel, unit)
    if per_volume:
        raise UnitError(f"{channel}: a spread in {unit!r} is not supported; give {CANONICAL[channel]}")
    return scale


@lru_cache(maxsize=512)
def _affine(channel: str, unit: str | None) -> _Affine:
    kind = KIND.get(channel)
    if kind is None:
        raise UnitError(f"unknown channel or actuator {channel!r}; known: {', '.join(sorted(KIND))}")
    text = _normal(unit) if isinstance(unit, str) else ""
    if not text:
        raise UnitError(f"{channel}: the unit is absent; expected one of {_ACCEPTED[kind]}")
    known = _TABLE[kind].get(text)
    if known is not None:
        return known
    if channel in MOLAR_MASS and text in ("g/L", "mg/mL", "mg/L", "mg/dL"):
        per_litre = {"g/L": 1e3, "mg/mL": 1e3, "mg/L": 1.0, "mg/dL": 10.0}[text]
        if kind == "molar":
            return _Affine(per_litre / MOLAR_MASS[channel])
    return _parsed(channel, kind, text)


def _normal(unit: str) -> str:
    text = unit.strip().replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    return text.replace("\N{MULTIPLICATION SIGN}", "*").replace("\N{MIDDLE DOT}", "*").replace("**", "^")


@cache
def _registry() -> Any:
    import pint  # costs 0.3 s, and the table answers nearly always

    registry = pint.UnitRegistry(autoconvert_offset_to_baseunit=True, cache_folder=None)
    registry.define("cell = [cell_count]")
    registry.define("international_unit = [biological_activity] = IU")
    registry.define("VVD = 1 / day = vvd")
    return registry


def _parsed(channel: str, kind: Kind, text: str) -> _Affine:
    """Scale and offset by pint, from what it makes of 0 and 1 in this unit."""
    refusal = UnitError(f"{channel}: unit {text[:60]!r} is not usable; expected one of {_ACCEPTED[kind]}")
    if kind not in _PINT_UNIT or not _SAFE.fullmatch(text) or _UNSAFE_POWER.search(text):
        raise refusal
    ureg = _registry()
    try:
        one = ureg.Quantity(1.0, text) if not _LEADING_NUMBER.match(text) else 1.0 * ureg.parse_expression(text)
        none = ureg.Quantity(0.0, one.units)
        unit, per_volume = ureg.Unit(_PINT_UNIT[kind]), False
        if channel in MOLAR_MASS and one.check("[mass]" + ("/[volume]" if kind == "molar" else "/[volume]/[time]")):
            one = one / ureg.Quantity(MOLAR_MASS[channel], "g/mol")
            none = ureg.Quantity(0.0, one.units)
        elif kind in ("flow", "dose") and not one.is_compatible_with(unit):
            unit, per_volume = unit * ureg.liter, True
        if not one.is_compatible_with(unit):
            raise refusal
        offset, at_one = float(none.to(unit).magnitude), float(one.to(unit).magnitude)
    except UnitError:
        raise
    except Exception as error:  # pint raises many kinds, its tokenizer others
        raise refusal from error
    scale = at_one - offset
    if not math.isfinite(scale) or scale <= 0:
        raise refusal
    return _Affine(scale, offset, per_volume)
