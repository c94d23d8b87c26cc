"""The report: the results of a run as `report.json` (`data`), with plots (`svg`) on one HTML page (`render`).

The page is a pure function of the JSON, so programs can read everything that it shows. Called by the stage
`distill.stages.report`.
"""
