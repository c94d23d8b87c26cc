-- A step of a search is a trace that others go on from, and no response: it is not counted and not offered as one.

CREATE OR REPLACE VIEW outcomes AS
    SELECT t.model, p.source, p.difficulty, count(*) AS traces,
        count(*) FILTER (t.finish = 'stop') AS finished, count(*) FILTER (t.finish = 'length') AS truncated,
        count(*) FILTER (t.finish = 'length' AND t.trace_key IN (SELECT trace_key FROM continuations)) AS continued,
        count(*) FILTER (t.finish = 'refused') AS refused, count(*) FILTER (t.finish = 'empty') AS empty
    FROM traces t LEFT JOIN prompts p USING (prompt_key)
    WHERE t.finish <> 'step' AND t.trace_key NOT IN (SELECT trace_key FROM rollouts) GROUP BY ALL;
COMMENT ON VIEW outcomes IS
    'How samples ended, by model, source and difficulty. `continued` of the truncated ones were gone on with. Without rollouts and the steps of searches.';

CREATE OR REPLACE VIEW overview AS
    WITH newest AS (
        SELECT trace_key, problem_key, outcome, score, verifier, version FROM judgements
        QUALIFY row_number() OVER (PARTITION BY trace_key ORDER BY created DESC, verdict_key) = 1),
    asked AS (SELECT prompt_key, min(problem_key) AS problem_key FROM problems GROUP BY prompt_key),
    rolled AS (SELECT DISTINCT trace_key, true AS rollout FROM rollouts)
    SELECT t.trace_key, t.created, p.problem_key, p.problem_id, p.source, p.difficulty, t.model, t.engine,
        t.temperature, t.sample_index, t.finish, t.prompt_tokens, t.thinking_tokens, t.answer_tokens,
        n.outcome, n.score, n.verifier, n.version, coalesce(r.rollout, false) AS rollout
    FROM traces t LEFT JOIN newest n USING (trace_key) LEFT JOIN asked a USING (prompt_key)
        LEFT JOIN problems p ON p.problem_key = coalesce(n.problem_key, a.problem_key)
        LEFT JOIN rolled r USING (trace_key)
    WHERE t.finish <> 'step';
COMMENT ON VIEW overview IS
    'Every response once, without its texts: the problem it answers, and the newest verdict that stands. What `distill traces list` and `export` choose from. The steps of searches are in `traces` alone.';
