-- Rates and prices counted a trace once for every version of a verifier, every verifier, and every record of its
-- problem (a changed licence makes another) that has judged it. The newest verdict counts, as in `overview`.

CREATE OR REPLACE VIEW pass_rates AS
    WITH newest AS (
        SELECT * FROM judgements
        QUALIFY row_number() OVER (PARTITION BY trace_key, problem_key, verifier ORDER BY created DESC, verdict_key) = 1)
    SELECT j.problem_key, p.problem_id, p.source, p.difficulty, t.model, t.temperature, j.verifier,
        count(*) AS traces, count(*) FILTER (j.outcome = 'correct') AS correct,
        count(*) FILTER (j.outcome = 'unverifiable') AS unverifiable,
        count(*) FILTER (j.outcome = 'correct') / nullif(count(*) FILTER (j.outcome <> 'unverifiable'), 0) AS pass_rate,
        sum(t.thinking_tokens + t.answer_tokens)::BIGINT AS tokens
    FROM newest j JOIN traces t USING (trace_key) JOIN problems p USING (problem_key)
    WHERE t.trace_key NOT IN (SELECT trace_key FROM rollouts) GROUP BY ALL;
COMMENT ON VIEW pass_rates IS
    'Each problem, model and verifier: how many of its traces are correct, by the newest verdict of that verifier. Without rollouts.';

CREATE OR REPLACE VIEW shortest_correct AS
    SELECT o.problem_id, o.source, o.model, o.trace_key, o.thinking_tokens + o.answer_tokens AS tokens
    FROM overview o WHERE o.outcome = 'correct'
    QUALIFY row_number() OVER (PARTITION BY o.problem_key, o.model ORDER BY tokens, o.trace_key) = 1;
COMMENT ON VIEW shortest_correct IS
    'The shortest trace of each model that answers each problem correctly, by the newest verdict.';

CREATE OR REPLACE VIEW token_prices AS
    SELECT model, source, count(*) AS traces, count(*) FILTER (outcome = 'correct') AS correct,
        sum(thinking_tokens + answer_tokens)::BIGINT AS tokens,
        sum(thinking_tokens + answer_tokens) / nullif(count(*) FILTER (outcome = 'correct'), 0) AS tokens_per_correct
    FROM overview WHERE outcome IS NOT NULL AND NOT rollout GROUP BY ALL;
COMMENT ON VIEW token_prices IS
    'What a correct answer costs in tokens, wrong ones included, by model and source: of judged traces, by the newest verdict of each.';

CREATE OR REPLACE VIEW answer_prices AS
    WITH paid AS (SELECT request_key AS trace_key, sum(cost) AS cost FROM calls GROUP BY 1)
    SELECT o.model, o.source, count(*) AS traces, count(*) FILTER (outcome = 'correct') AS correct, sum(paid.cost) AS cost,
        (sum(paid.cost) / nullif(count(*) FILTER (outcome = 'correct'), 0))::DOUBLE AS cost_per_correct
    FROM overview o JOIN paid USING (trace_key) GROUP BY ALL;
COMMENT ON VIEW answer_prices IS
    'What a correct answer costs in money, wrong ones and lost calls included, by model and source; the newest verdict counts.';
