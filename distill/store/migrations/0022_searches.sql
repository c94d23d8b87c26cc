-- Test-time compute: what each strategy chose of its samples and what that took, and what a step scorer said.

CREATE TABLE searches (
    run VARCHAR, strategy VARCHAR, budget INTEGER, start INTEGER, problem_key VARCHAR, trace_key VARCHAR, answer VARCHAR,
    correct BOOLEAN, calls INTEGER, prompt_tokens BIGINT, sampled_tokens BIGINT, scored_tokens BIGINT);
COMMENT ON TABLE searches IS 'What each strategy chose for each problem with each budget, and its bill.';
COMMENT ON COLUMN searches.run IS 'fingerprint of the search stage';
COMMENT ON COLUMN searches.strategy IS 'its label: the name, and the settings that are not the usual ones';
COMMENT ON COLUMN searches.budget IS 'samples a problem (beams, of a search step by step)';
COMMENT ON COLUMN searches.start IS 'the first sample taken; the next follow it, the first ones after the last';
COMMENT ON COLUMN searches.trace_key IS 'the trace that the answer rests on';
COMMENT ON COLUMN searches.correct IS 'by the verifier; null where it could not tell';
COMMENT ON COLUMN searches.prompt_tokens IS 'given to the model: prompts, and of begun responses their beginnings; a cache changes nothing';
COMMENT ON COLUMN searches.scored_tokens IS 'read by the step scorer';

CREATE TABLE step_scores (score_key VARCHAR, scorer VARCHAR, trace_key VARCHAR, steps DOUBLE[]);
COMMENT ON TABLE step_scores IS 'The probability that each step of a trace is right, by a step scorer.';
COMMENT ON COLUMN step_scores.score_key IS 'content hash of scorer and trace';
COMMENT ON COLUMN step_scores.scorer IS 'identity of the scorer';

CREATE VIEW strategies AS
    SELECT run, strategy, budget, count(DISTINCT problem_key) AS problems, avg(correct::INTEGER) AS accuracy,
        avg(calls) AS calls, avg(sampled_tokens) AS sampled_tokens, avg(scored_tokens) AS scored_tokens
    FROM searches GROUP BY ALL;
COMMENT ON VIEW strategies IS 'The accuracy of each strategy with each budget, and what an answer took on average.';
