"""Adaptive sampling: each problem gets as many samples as its verdicts ask for, and no more.

`rule` decides on one problem, `course` on all of them with their quotas: both are pure. `known` is what the
store holds of it already, `stream` makes the rest, sampling and judging at the same time, and `figures` tells
what came of it. What a user sets is `settings`. The decisions and their reasons: docs/design/008-adaptive.md.
"""
