-- On-policy distillation: what the teacher made of each token that the student sampled.

ALTER TABLE rollouts ADD COLUMN teacher_logprobs FLOAT[];
COMMENT ON COLUMN rollouts.teacher_logprobs IS
    'the teacher''s natural logs, one a token id; less those of the trace they are the credit. Null without a teacher';
