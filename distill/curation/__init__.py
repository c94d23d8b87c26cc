"""Curation of problems: duplicates among them, and overlap with evaluation sets.

A library without a store or a pipeline: texts go in, sorted by their content, and overlaps come out.
`distill.stages.curate` calls it.
"""
