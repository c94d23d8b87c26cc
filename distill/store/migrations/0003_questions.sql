-- The questions people ask of a store, as views over it.

CREATE VIEW pass_rates AS
    SELECT j.problem_key, p.problem_id, p.source, p.difficulty, t.model, t.temperature, j.verifier,
        count(*) AS traces, count(*) FILTER (j.outcome = 'correct') AS correct,
        count(*) FILTER (j.outcome = 'unverifiable') AS unverifiable,
        count(*) FILTER (j.outcome = 'correct') / nullif(count(*) FILTER (j.outcome <> 'unverifiable'), 0) AS pass_rate,
        sum(t.thinking_tokens + t.answer_tokens)::BIGINT AS tokens
    FROM judgements j JOIN traces t USING (trace_key) JOIN problems p USING (problem_key)
    WHERE t.trace_key NOT IN (SELECT trace_key FROM rollouts) GROUP BY ALL;
COMMENT ON VIEW pass_rates IS
    'Each problem, model and verifier: how many of its traces are correct. Without rollouts.';

CREATE VIEW shortest_correct AS
    SELECT p.problem_id, p.source, t.model, t.trace_key, t.thinking_tokens + t.answer_tokens AS tokens
    FROM judgements j JOIN traces t USING (trace_key) JOIN problems p USING (problem_key)
    WHERE j.outcome = 'correct'
    QUALIFY row_number() OVER (PARTITION BY j.problem_key, t.model ORDER BY tokens, t.trace_key) = 1;
COMMENT ON VIEW shortest_correct IS 'The shortest trace of each model that answers each problem correctly.';

CREATE VIEW token_prices AS
    SELECT model, source, sum(traces)::BIGINT AS traces, sum(correct)::BIGINT AS correct, sum(tokens)::BIGINT AS tokens,
        sum(tokens) / nullif(sum(correct), 0) AS tokens_per_correct
    FROM pass_rates GROUP BY ALL;
COMMENT ON VIEW token_prices IS 'What a correct answer costs in tokens, wrong ones included, by model and source.';

CREATE VIEW funnel AS
    SELECT m.collection, p.source, p.difficulty, coalesce(m.reason, 'kept') AS outcome, count(*) AS traces,
        sum(t.thinking_tokens + t.answer_tokens)::BIGINT AS tokens
    FROM members m JOIN traces t ON m.row_key = t.trace_key JOIN prompts p USING (prompt_key)
    WHERE m.label IN ('kept', 'rejected') GROUP BY ALL;
COMMENT ON VIEW funnel IS 'From generated to kept, by reason of rejection, for each selection (its digest is `collection`).';

CREATE VIEW lineage AS
    SELECT m.collection, m.position, p.problem_id, p.source, t.trace_key, t.model, t.temperature, j.verifier, j.version, j.outcome
    FROM members m JOIN traces t ON m.row_key = t.trace_key JOIN prompts p USING (prompt_key)
    JOIN judgements j USING (trace_key)
    WHERE m.label = 'kept';
COMMENT ON VIEW lineage IS
    'Which traces taught a student, of which model, and who called them what. `collection` is the digest that the student''s manifest names as its `data` input.';
