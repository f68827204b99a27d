"""`python -m service.bench mpc|filters JSON`: the part of a benchmark that needs a process of its own."""

import sys

if sys.argv[1] == "mpc":
    from service.bench.mpc import answer
else:
    from service.bench.filters import answer

sys.stdout.write(answer(sys.argv[-1]) + "\n")
