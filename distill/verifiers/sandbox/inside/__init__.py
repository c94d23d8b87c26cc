"""What runs on the far side: the launcher, process 1 of a box, and what confines the candidate.

A small package of its own that imports nothing of ours, with relative imports alone: the launcher starts it
from this directory (`distill.verifiers.sandbox.launcher`), so that no candidate ever has the verifier's
modules, answers or environment in its memory.
"""
