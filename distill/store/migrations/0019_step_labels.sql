-- What a process reward model was taught: the label of each step, and who gave it.

CREATE TABLE step_labels (
    run VARCHAR, example VARCHAR, step INTEGER, label DOUBLE, source VARCHAR, part VARCHAR, trace_key VARCHAR
);
COMMENT ON TABLE step_labels IS 'The labels that process reward models were trained and tested on, as they were used.';
COMMENT ON COLUMN step_labels.run IS 'fingerprint of the prm stage';
COMMENT ON COLUMN step_labels.example IS 'content key of the labelled response; of a trace it is the trace''s key';
COMMENT ON COLUMN step_labels.step IS 'which step of the response, from 0';
COMMENT ON COLUMN step_labels.label IS 'the chance that it is right';
COMMENT ON COLUMN step_labels.source IS 'exact, slips, rollouts, groups or imported';
COMMENT ON COLUMN step_labels.part IS 'train, heldout or test';
COMMENT ON COLUMN step_labels.trace_key IS 'the trace, where the response is one';
