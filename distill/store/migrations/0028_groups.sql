-- What makes a group: it was said to be this column, which counts within one.

COMMENT ON COLUMN rollouts.group_index IS 'which sample of its group, from 0; a group are the rollouts of one run, step and problem';
