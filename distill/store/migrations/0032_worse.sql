-- An alarm that runs may raise since.

COMMENT ON COLUMN alarms.name IS 'hacking, worse, format_only, length, entropy, diversity, logprob_gap, kl or no_gradient';
