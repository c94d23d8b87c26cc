-- What is said of runs since, and why an update may not have used a rollout.

COMMENT ON COLUMN alarms.name IS 'hacking, format_only, length, entropy, diversity, logprob_gap, kl or no_gradient';
COMMENT ON COLUMN rollouts.used IS 'whether an update learned from it; not, say, where all rewards of its group were equal or nobody could judge it';
