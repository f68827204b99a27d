"""Graphs as machine code: C emitted from CasADi functions, built once, loaded as shared libraries."""
