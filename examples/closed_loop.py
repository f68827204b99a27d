"""One virtual donor under its recipe and under the MPC, on a plant that is not the model. About half a minute."""

from __future__ import annotations

from simulators import run_closed_loop
from twin import load_config

process = load_config("car_nk")
for policy in ("cspr_100", "mpc"):
    result = run_closed_loop(process, policy, donor=7, seed=1)
    o = result.outcome
    print(
        f"{policy:10} {'pass' if result.passed else 'fail: ' + ', '.join(o.missed)}  day {o.day:.1f}  "
        f"{o.cqas['viable_cells']:.1f}e9 cells  viability {o.cqas['viability']:.2f}  {o.medium_vv:.1f} volumes of medium"
    )
    for decision in result.decisions[::8]:
        print(f"    day {decision.at:5.2f}: {'; '.join(decision.reasons)}")
