"""Test-time compute: ways to spend several samples on one problem, behind one interface.

`base` says what a strategy is: a generator that asks for samples, scores and verdicts, and ends with its choice. The
strategies have a file each. `drive` brings many of them forward together, through whatever samples and scores, and
keeps the bill. `stored` samples by an engine into the trace store, `live` by an engine alone. `pool` has the samples
that whole responses are chosen from, and `measure` brings it all into figures.
"""
