-- What was said of a run while it ran.

CREATE TABLE alarms (run VARCHAR, name VARCHAR, step INTEGER, evidence VARCHAR, value DOUBLE, threshold DOUBLE);
COMMENT ON TABLE alarms IS 'Signs of reward hacking or collapse, each once a run, when it was first seen.';
COMMENT ON COLUMN alarms.run IS 'fingerprint of the grpo stage';
COMMENT ON COLUMN alarms.name IS 'hacking, format_only, length, entropy, diversity, logprob_gap or kl';
COMMENT ON COLUMN alarms.step IS 'after so many steps';
COMMENT ON COLUMN alarms.evidence IS 'what was seen, for people';
