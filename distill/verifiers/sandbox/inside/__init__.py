"""The sandbox's side: the launcher, process 1 of a box, and the code that confines the candidate.

A self-contained package with only relative imports. `distill.verifiers.sandbox.launcher` starts it from this directory,
in an interpreter of its own, so no candidate ever has the verifier's modules, answers or environment in its memory.
"""
