"""Evidence that an observation is unusual, made of a stream's own past.

Each chain has the same two verbs, in this order: ``look`` at x with statistics from before it, ``learn`` from it
after the decision. Evidence that has no value on an observation (missing, no forecast yet) has weight 0. The
formulas stand in docs/score.md.
"""
