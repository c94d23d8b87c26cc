-- Traces are nearly all of a store, and were kept twice: in the database and in the journal. Now their rows
-- lie in the journal's files alone. The database holds their keys, and a view over the files.

ALTER TABLE traces RENAME TO trace_columns;
COMMENT ON TABLE trace_columns IS 'Empty: it states the columns of `traces` and their types.';

CREATE TABLE trace_keys (trace_key VARCHAR);
COMMENT ON TABLE trace_keys IS 'The keys of all traces: how a row that is there already is told.';

CREATE VIEW traces AS SELECT * FROM trace_columns;
COMMENT ON VIEW traces IS
    'One sampled response to a prompt: by the teacher, in evaluation, or a rollout. A view over the Parquet files in `journal/traces`, whose directory is the variable `workspace` (by default the working directory).';

CREATE VIEW overview AS
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
        LEFT JOIN rolled r USING (trace_key);
COMMENT ON VIEW overview IS
    'Every trace once, without its texts: the problem it answers, and the newest verdict that stands. What `distill traces list` and `export` choose from.';
