"""The report: what a run found, as `report.json` (`data`), drawn (`svg`) on one page (`render`).

The page is a pure function of the JSON, so whatever it shows can also be read by a program. Called by
the stage `distill.stages.report`.
"""
