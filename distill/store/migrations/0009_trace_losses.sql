-- What supervised training made of each trace: which taught least, and which was never believed.

CREATE TABLE trace_losses (run VARCHAR, trace_key VARCHAR, epoch INTEGER, loss DOUBLE);
COMMENT ON TABLE trace_losses IS 'The loss of each trace in each epoch of supervised training.';
COMMENT ON COLUMN trace_losses.run IS 'fingerprint of the sft stage';
COMMENT ON COLUMN trace_losses.epoch IS 'from 1';
COMMENT ON COLUMN trace_losses.loss IS 'mean over its learned tokens, in nats, before the update that it took part in';

CREATE VIEW lessons AS
    SELECT l.run, l.trace_key, any_value(p.problem_id) AS problem_id, any_value(p.source) AS source,
        count(*) AS epochs, arg_min(l.loss, l.epoch) AS first_loss, arg_max(l.loss, l.epoch) AS last_loss,
        arg_min(l.loss, l.epoch) - arg_max(l.loss, l.epoch) AS learned
    FROM trace_losses l LEFT JOIN traces t USING (trace_key) LEFT JOIN prompts p USING (prompt_key)
    GROUP BY l.run, l.trace_key;
COMMENT ON VIEW lessons IS
    'Each trace that a student learned from: its loss when first and when last seen, and how much of it was learned. A small first loss taught little; a last loss that stays high beside the others'' looks mislabelled.';
