-- Traces are nearly all of a store, and were kept twice: in the database and in the journal. Now their rows
-- lie in the journal's files alone. The database holds their keys, and a view over the files.

ALTER TABLE traces RENAME TO trace_columns;
COMMENT ON TABLE trace_columns IS 'Empty: it states the columns of `traces` and their types.';

CREATE TABLE trace_keys (trace_key VARCHAR);
COMMENT ON TABLE trace_keys IS 'The keys of all traces: how a row that is there already is told.';

CREATE VIEW traces AS SELECT * FROM trace_columns;
COMMENT ON VIEW traces IS
    'One sampled response to a prompt: by the teacher, in evaluation, or a rollout. A view over the Parquet files in `journal/traces`, whose directory is the variable `workspace` (by default the working directory).';
