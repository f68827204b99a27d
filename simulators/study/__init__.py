"""Studies of the estimator: what is claimed of it, measured by a command anyone can rerun. Who runs the jobs is the caller's."""

from simulators.study import (
    ahead,
    attribution,
    calibration,
    control,
    faults,
    fusion,
    pooling,
    prospect,
    pumps,
    recovery,
    release,
    robustness,
    update,
)
from simulators.study.base import Figure, Study, Table

STUDIES: dict[str, Study] = {
    "calibration": calibration.STUDY,
    "faults": faults.STUDY,
    "pumps": pumps.STUDY,
    "robustness": robustness.STUDY,
    "fusion": fusion.STUDY,
    "ahead": ahead.STUDY,
    "release": release.STUDY,
    "update": update.STUDY,
    "attribution": attribution.STUDY,
    "prospect": prospect.STUDY,
    "control": control.STUDY,
    "recovery": recovery.STUDY,
    "pooling": pooling.STUDY,
}

__all__ = ["STUDIES", "Figure", "Study", "Table"]
