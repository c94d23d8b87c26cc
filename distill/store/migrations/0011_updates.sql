-- What an update made of a rollout, so that one query explains it.

ALTER TABLE rollouts ADD COLUMN components VARCHAR;
ALTER TABLE rollouts ADD COLUMN advantages FLOAT[];
COMMENT ON COLUMN rollouts.components IS 'JSON: what the reward is made of, by name; null where it is one verifier''s score';
COMMENT ON COLUMN rollouts.advantages IS 'one a token id, where they differ; else null, and all have the advantage';

CREATE TABLE updates (run VARCHAR, optimizer_step INTEGER, trace_key VARCHAR, weight DOUBLE, logprobs FLOAT[]);
COMMENT ON TABLE updates IS 'Which optimizer update learned from which rollout: what the trainer made of it.';
COMMENT ON COLUMN updates.run IS 'fingerprint of the grpo stage';
COMMENT ON COLUMN updates.optimizer_step IS 'from 1; several a step where the stage says so';
COMMENT ON COLUMN updates.weight IS 'of each of its sampled tokens in the loss';
COMMENT ON COLUMN updates.logprobs IS 'the trainer''s natural logs of the sampled tokens, under the weights before the update';
