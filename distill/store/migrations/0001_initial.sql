-- The facts. Every table is append-only and keyed by content; long text and token ids are columns of
-- their own, so that a funnel query never reads them. Comments here are the documented schema.

CREATE TABLE problems (
    problem_key VARCHAR, prompt_key VARCHAR, problem_id VARCHAR, source VARCHAR, split VARCHAR, verifier VARCHAR,
    difficulty INTEGER, licence VARCHAR, structure VARCHAR, origin VARCHAR, system VARCHAR, prompt VARCHAR,
    reference VARCHAR, metadata VARCHAR);
COMMENT ON TABLE problems IS 'What is to be answered.';
COMMENT ON COLUMN problems.problem_key IS 'content hash of what is asked, how it is checked, and what is said of it';
COMMENT ON COLUMN problems.prompt_key IS 'content hash of what is asked: system and prompt';
COMMENT ON COLUMN problems.problem_id IS 'stable readable name';
COMMENT ON COLUMN problems.difficulty IS 'steps, or a level; null where unknown';
COMMENT ON COLUMN problems.structure IS 'the function, chain or formula underneath; never on both sides of a split';
COMMENT ON COLUMN problems.origin IS 'file and line it was first read from';
COMMENT ON COLUMN problems.reference IS 'what the verifier compares with';

CREATE TABLE traces (
    trace_key VARCHAR, prompt_key VARCHAR, model VARCHAR, engine VARCHAR, temperature DOUBLE,
    top_p DOUBLE, top_k INTEGER, max_tokens INTEGER, seed BIGINT, sample_index INTEGER,
    finish VARCHAR, closed BOOLEAN, prompt_tokens INTEGER, thinking_tokens INTEGER,
    answer_tokens INTEGER, seconds DOUBLE, created TIMESTAMP, prompt VARCHAR, thinking VARCHAR,
    answer VARCHAR, prompt_ids INTEGER[], token_ids INTEGER[], logprobs FLOAT[]);
COMMENT ON TABLE traces IS 'One sampled response to a prompt: by the teacher, in evaluation, or a rollout.';
COMMENT ON COLUMN traces.trace_key IS 'content hash of prompt, model, sampling, seed and sample index';
COMMENT ON COLUMN traces.prompt_key IS 'problems that ask the same share their traces';
COMMENT ON COLUMN traces.model IS 'identity of the weights: a content hash, a hub revision, or an endpoint';
COMMENT ON COLUMN traces.finish IS 'stop, length, refused or empty';
COMMENT ON COLUMN traces.created IS 'UTC';
COMMENT ON COLUMN traces.closed IS 'whether thinking ended';
COMMENT ON COLUMN traces.prompt IS 'the rendered prompt, as the model saw it';
COMMENT ON COLUMN traces.thinking IS 'inside the think tags';
COMMENT ON COLUMN traces.answer IS 'after the think tags: all that a verifier sees';
COMMENT ON COLUMN traces.logprobs IS 'natural logs under the distribution sampled from, one a token id';

CREATE TABLE verdicts (
    verdict_key VARCHAR, trace_key VARCHAR, problem_key VARCHAR, verifier VARCHAR, version VARCHAR, settings VARCHAR,
    outcome VARCHAR, score DOUBLE, reason VARCHAR, evidence VARCHAR, seconds DOUBLE, created TIMESTAMP);
COMMENT ON TABLE verdicts IS 'What one version of one verifier said of one trace. All are kept.';
COMMENT ON COLUMN verdicts.problem_key IS 'the problem whose reference it was judged by';
COMMENT ON COLUMN verdicts.outcome IS 'correct, incorrect or unverifiable';
COMMENT ON COLUMN verdicts.evidence IS 'JSON: how the verdict came about';

CREATE TABLE members (collection VARCHAR, position INTEGER, label VARCHAR, row_key VARCHAR, reason VARCHAR);
COMMENT ON TABLE members IS 'Which rows a stage''s output consists of, in order.';
COMMENT ON COLUMN members.collection IS 'the digest in the stage''s manifest';
COMMENT ON COLUMN members.label IS 'train or heldout; a trace''s problem; kept or rejected; the model evaluated';
COMMENT ON COLUMN members.row_key IS 'a problem, trace or verdict key';
COMMENT ON COLUMN members.reason IS 'why a trace was rejected';

CREATE TABLE rollouts (
    trace_key VARCHAR, problem_key VARCHAR, run VARCHAR, step INTEGER, group_index INTEGER, reward DOUBLE,
    advantage DOUBLE, used BOOLEAN);
COMMENT ON TABLE rollouts IS 'What GRPO made of a trace: with traces it explains every update.';
COMMENT ON COLUMN rollouts.run IS 'fingerprint of the grpo stage';
COMMENT ON COLUMN rollouts.step IS 'the optimizer step that used it, and the version of the weights that sampled it';
COMMENT ON COLUMN rollouts.group_index IS 'rollouts of one prompt share it';
COMMENT ON COLUMN rollouts.reward IS 'null where unverifiable: neither a reward nor a punishment';
COMMENT ON COLUMN rollouts.used IS 'false for groups dropped because all rewards were equal';

CREATE TABLE metrics (run VARCHAR, step INTEGER, name VARCHAR, value DOUBLE);
COMMENT ON TABLE metrics IS 'Training curves, long form.';
COMMENT ON COLUMN metrics.run IS 'fingerprint of the sft, pretrain or grpo stage';

CREATE TABLE ingested (table_name VARCHAR, journal VARCHAR, added BIGINT);
COMMENT ON TABLE ingested IS 'Which journal files this database holds, and how many rows each brought: how a lost tail is noticed.';

CREATE VIEW prompts AS
    SELECT prompt_key, any_value(system) AS system, any_value(prompt) AS prompt,
        arg_min(problem_id, problem_key) AS problem_id, arg_min(source, problem_key) AS source,
        arg_min(difficulty, problem_key) AS difficulty
    FROM problems GROUP BY prompt_key;
COMMENT ON VIEW prompts IS 'What is asked, once; named by one of the problems that ask it.';
