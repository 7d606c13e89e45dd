"""Action recognition from video that looks at as few frames as it can.

The four packages lie at the top of the repository, `pipeline/`, `features/`, `models/` and `jobs/`; the links in this
folder make one package of them.
"""
