-- What was paid for: every call that an endpoint may bill, the failed ones too. The caps of the openai engine
-- count these rows over all runs of a stage.

CREATE TABLE calls (
    call_id VARCHAR, account VARCHAR, model VARCHAR, request_key VARCHAR, outcome VARCHAR, prompt_tokens INTEGER,
    cached_tokens INTEGER, tokens INTEGER, cost DECIMAL(24, 12), seconds DOUBLE, created TIMESTAMP);
COMMENT ON TABLE calls IS 'One call to an endpoint that may have been billed. Several may make one trace, or none.';
COMMENT ON COLUMN calls.account IS 'the stage that made it; for a judge, the stage and the judge';
COMMENT ON COLUMN calls.model IS 'identity of the model: the endpoint and the name it has there';
COMMENT ON COLUMN calls.request_key IS 'the key of the trace it was made for, or of a judge''s question';
COMMENT ON COLUMN calls.outcome IS
    'answered; lost (no usable reply: counted at the most that it can have cost); ended (hung up by us: counted by what had come)';
COMMENT ON COLUMN calls.cached_tokens IS 'of the prompt tokens, those that the endpoint had cached';
COMMENT ON COLUMN calls.tokens IS 'of the response';
COMMENT ON COLUMN calls.cost IS 'in the currency of the prices, to the last digit';
COMMENT ON COLUMN calls.created IS 'when it was over, UTC';

CREATE VIEW spending AS
    SELECT account, model, count(*) AS calls, count(*) FILTER (outcome <> 'answered') AS unanswered,
        sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(cached_tokens)::BIGINT AS cached_tokens,
        sum(tokens)::BIGINT AS tokens, sum(cost) AS cost, coalesce(sum(cost) FILTER (outcome <> 'answered'), 0) AS lost_cost
    FROM calls GROUP BY ALL;
COMMENT ON VIEW spending IS 'What each stage''s calls to each model took, over all runs; how much of it brought nothing.';

CREATE VIEW answer_prices AS
    WITH paid AS (SELECT request_key AS trace_key, sum(cost) AS cost FROM calls GROUP BY 1),
        judged AS (
            SELECT trace_key, bool_or(outcome = 'correct') AS correct FROM judgements GROUP BY 1)
    SELECT t.model, p.source, count(*) AS traces, count(*) FILTER (correct) AS correct, sum(paid.cost) AS cost,
        (sum(paid.cost) / nullif(count(*) FILTER (correct), 0))::DOUBLE AS cost_per_correct
    FROM traces t JOIN paid USING (trace_key) JOIN prompts p USING (prompt_key) LEFT JOIN judged USING (trace_key)
    GROUP BY ALL;
COMMENT ON VIEW answer_prices IS 'What a correct answer costs in money, wrong ones and lost calls included, by model and source.';
