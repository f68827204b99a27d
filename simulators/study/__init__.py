"""Studies of the estimator: what is claimed of it, measured by a command anyone can rerun. Who runs the jobs is the caller's."""

from simulators.study import ahead, calibration, faults, fusion, pumps, robustness, update
from simulators.study.base import Figure, Study, Table

STUDIES: dict[str, Study] = {
    "calibration": calibration.STUDY,
    "faults": faults.STUDY,
    "pumps": pumps.STUDY,
    "robustness": robustness.STUDY,
    "fusion": fusion.STUDY,
    "ahead": ahead.STUDY,
    "update": update.STUDY,
}

__all__ = ["STUDIES", "Figure", "Study", "Table"]
