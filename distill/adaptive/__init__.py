"""Adaptive sampling: each problem gets as many samples as its verdicts require, and no more.

`rule` decides for one problem, `course` for all of them with their quotas; both are pure. `known` finds what the
store already holds, `stream` makes the rest, sampling and judging at the same time, and `figures` sums up the result.
`settings` are what a user sets. The decisions and their reasons: docs/design/008-adaptive.md.
"""
