"""Test-time compute: ways to spend several samples on one problem, behind one interface.

`base` defines a strategy: a generator that asks for samples, scores and verdicts, and returns its choice. Each strategy
has its own file. `drive` advances many searches together, with any source of samples and scores, and counts what each
uses. `stored` samples with an engine into the trace store, `live` with an engine alone. `pool` holds the samples that
strategies of whole responses choose from, and `measure` turns everything into figures.
"""
