"""A laboratory value that is entered a day late gives the belief that it would have given on time."""

from __future__ import annotations

from simulators import VirtualBioreactor
from twin import Twin, load_config
from twin.evidence import Measurement

process = load_config("car_nk")
facts = VirtualBioreactor(process, donor=3, seed=2).tick(until=5.0)
late = next(f for f in facts if isinstance(f, Measurement) and f.channel == "glucose" and f.sampled_at > 3.0)
others = [f for f in facts if f is not late]

without = Twin.start(process).tell(others)
on_time, a_day_late = Twin.start(process).tell(facts), without.tell(late)
for name, twin in (("without it", without), ("on time", on_time), ("late", a_day_late)):
    glucose = twin.estimate(5.0)["glucose"]
    print(f"{name:10} glucose {glucose.mean:.3f} mM, 90 % {glucose.q05:.3f} to {glucose.q95:.3f}")
assert a_day_late.belief(5.0) == on_time.belief(5.0)
