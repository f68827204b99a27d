"""What a run rested on and what came of it, kept in MLflow, and whether a rerun gives the same.

`digest`, `verbs`, `record` and `compare` are values in, values out; `provenance` reads this installation; `store` alone
speaks to MLflow and imports it when it is opened.
"""
