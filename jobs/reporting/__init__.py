"""Figures and pages: trade-off curves, film strips, and the report of a sweep."""
