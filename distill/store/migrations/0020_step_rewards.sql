-- Dense rewards: what a process reward model made of each step of a rollout.

ALTER TABLE rollouts ADD COLUMN step_rewards FLOAT[];
COMMENT ON COLUMN rollouts.step_rewards IS
    'the process reward model''s probability of each step, in order; null where none is asked';
