"""Curation of problems: duplicates among them, and overlap with what they will be measured on.

A library with no store and no pipeline in it: texts go in, what overlaps with what comes out, and the order of
the texts changes nothing but the numbers they go by. `distill.stages.curate` is its caller.
"""
