-- PPO: what a value head expected before each token, and what it was to learn.

ALTER TABLE rollouts ADD COLUMN state_values FLOAT[];
ALTER TABLE rollouts ADD COLUMN value_targets FLOAT[];
COMMENT ON COLUMN rollouts.state_values IS
    'the reward that the value head expected before each token id, under the weights that sampled; null where a token was given, and without a value head';
COMMENT ON COLUMN rollouts.value_targets IS 'what it was to expect there; less `state_values` it is the advantage before whitening';
