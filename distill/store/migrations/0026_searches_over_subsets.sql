-- A strategy whose mean over all subsets of the samples is known has one row a problem and budget: shares, not choices.

DROP VIEW strategies;
ALTER TABLE searches ALTER correct TYPE DOUBLE USING correct::INTEGER;
ALTER TABLE searches ALTER calls TYPE DOUBLE;
ALTER TABLE searches ALTER prompt_tokens TYPE DOUBLE;
ALTER TABLE searches ALTER sampled_tokens TYPE DOUBLE;
ALTER TABLE searches ALTER scored_tokens TYPE DOUBLE;
COMMENT ON TABLE searches IS 'What each strategy chose for each problem with each budget, and its bill. Where its mean over all subsets of the stored samples is known, that, and no `trace_key`.';
COMMENT ON COLUMN searches.strategy IS 'its label: the name, the settings that are not the usual ones, and who scores';
COMMENT ON COLUMN searches.correct IS '1 or 0 by the verifier, or the share of subsets; null where it could not tell';

CREATE VIEW strategies AS
    SELECT run, strategy, budget, count(DISTINCT problem_key) AS problems, avg(correct) AS accuracy,
        avg(calls) AS calls, avg(sampled_tokens) AS sampled_tokens, avg(scored_tokens) AS scored_tokens
    FROM searches GROUP BY ALL;
COMMENT ON VIEW strategies IS 'The accuracy of each strategy with each budget, and what an answer took on average.';
