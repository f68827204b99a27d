"""`python -m service.bench JSON`: the part of a benchmark that needs a process of its own."""

import sys

from service.bench.filters import answer

sys.stdout.write(answer(sys.argv[1]) + "\n")
