-- Version 1 of the schema, which makes an empty store. Every table is append-only and keyed by content; long texts and
-- token ids are columns of their own, so that a query of counts never reads them. Comments are the text of
-- docs/store.md. Once version 1 is released, this file stays as it is, and a change is 0002_<what>.sql.

CREATE TABLE schema_versions (version INTEGER, checksum VARCHAR, applied TIMESTAMP);
COMMENT ON TABLE schema_versions IS 'The version of this schema, and those before it, each with the hash of its SQL.';

CREATE TABLE problems (
    problem_key VARCHAR, prompt_key VARCHAR, problem_id VARCHAR, source VARCHAR, split VARCHAR, verifier VARCHAR,
    difficulty INTEGER, licence VARCHAR, structure VARCHAR, origin VARCHAR, system VARCHAR, prompt VARCHAR,
    reference VARCHAR, metadata VARCHAR);
COMMENT ON TABLE problems IS 'The problems.';
COMMENT ON COLUMN problems.problem_key IS 'content hash of what is asked, how it is checked and what the source says of it; not of its name or split';
COMMENT ON COLUMN problems.prompt_key IS 'content hash of system and prompt';
COMMENT ON COLUMN problems.problem_id IS 'readable name, which stays the same between runs';
COMMENT ON COLUMN problems.source IS 'the family, file or data set that it comes from';
COMMENT ON COLUMN problems.split IS 'train or heldout';
COMMENT ON COLUMN problems.verifier IS 'the verifier that the source names for it';
COMMENT ON COLUMN problems.difficulty IS 'number of steps, or a level; null if unknown';
COMMENT ON COLUMN problems.licence IS 'of the source; unknown if it states none';
COMMENT ON COLUMN problems.structure IS 'the function, chain or formula that the problem was made from; no structure is in both splits';
COMMENT ON COLUMN problems.origin IS 'the file and line where it was first read';
COMMENT ON COLUMN problems.system IS 'the system message; null if there is none';
COMMENT ON COLUMN problems.prompt IS 'the user''s message';
COMMENT ON COLUMN problems.reference IS 'the right answer, or the tests: what the verifier compares with';
COMMENT ON COLUMN problems.metadata IS 'JSON: what else the source says of it';

CREATE TABLE trace_columns (
    trace_key VARCHAR, prompt_key VARCHAR, model VARCHAR, engine VARCHAR, temperature DOUBLE, top_p DOUBLE,
    top_k INTEGER, max_tokens INTEGER, seed BIGINT, sample_index INTEGER, finish VARCHAR, closed BOOLEAN,
    prompt_tokens INTEGER, thinking_tokens INTEGER, answer_tokens INTEGER, seconds DOUBLE, created TIMESTAMP,
    prompt VARCHAR, thinking VARCHAR, answer VARCHAR, prompt_ids INTEGER[], token_ids INTEGER[], logprobs FLOAT[],
    prefix VARCHAR, budget VARCHAR, forced INTEGER[], cut VARCHAR, continues VARCHAR);
COMMENT ON TABLE trace_columns IS 'Empty: it states the columns of `traces` and their types.';
COMMENT ON COLUMN trace_columns.trace_key IS 'content hash of prompt, model, sampling, seed and sample index; also of messages, prefix and thinking budget if the stage''s settings change them';
COMMENT ON COLUMN trace_columns.prompt_key IS 'the prompt of the problem; problems with the same prompt share their traces';
COMMENT ON COLUMN trace_columns.model IS 'identity of the weights: a content hash, a hub revision, or an endpoint';
COMMENT ON COLUMN trace_columns.engine IS 'transformers, vllm, openai or imported';
COMMENT ON COLUMN trace_columns.sample_index IS 'which sample of this prompt, from 0';
COMMENT ON COLUMN trace_columns.finish IS 'stop (ended by itself), length (reached max_tokens), refused (by an endpoint''s content filter) or empty';
COMMENT ON COLUMN trace_columns.closed IS 'whether the thinking ended';
COMMENT ON COLUMN trace_columns.created IS 'UTC';
COMMENT ON COLUMN trace_columns.prompt IS 'the rendered prompt, as the model saw it';
COMMENT ON COLUMN trace_columns.thinking IS 'the text inside the think tags';
COMMENT ON COLUMN trace_columns.answer IS 'the text after the think tags, which verifiers judge';
COMMENT ON COLUMN trace_columns.logprobs IS 'one per token id: natural logs under the distribution sampled from';
COMMENT ON COLUMN trace_columns.prefix IS 'the beginning of the response, if it was given and not sampled; else null';
COMMENT ON COLUMN trace_columns.budget IS 'JSON: the thinking budget; null if there was none';
COMMENT ON COLUMN trace_columns.forced IS 'positions in token_ids that were not sampled (the prefix, and what the thinking budget inserted); null if there are none';
COMMENT ON COLUMN trace_columns.cut IS 'the whole text of a response that reached max_tokens, from which it can be continued; else null';
COMMENT ON COLUMN trace_columns.continues IS 'the truncated trace that this one continues; else null';

CREATE TABLE verdicts (
    verdict_key VARCHAR, trace_key VARCHAR, problem_key VARCHAR, verifier VARCHAR, version VARCHAR, settings VARCHAR,
    outcome VARCHAR, score DOUBLE, reason VARCHAR, evidence VARCHAR, seconds DOUBLE, created TIMESTAMP);
COMMENT ON TABLE verdicts IS 'What a version of a verifier said about a trace. Old verdicts are kept.';
COMMENT ON COLUMN verdicts.verdict_key IS 'content hash of trace, problem, verifier, version and settings';
COMMENT ON COLUMN verdicts.problem_key IS 'the problem whose reference the answer was compared with';
COMMENT ON COLUMN verdicts.settings IS 'JSON: the settings of the verifier';
COMMENT ON COLUMN verdicts.outcome IS 'correct, incorrect or unverifiable';
COMMENT ON COLUMN verdicts.score IS 'from 0 to 1';
COMMENT ON COLUMN verdicts.reason IS 'why, in a few words';
COMMENT ON COLUMN verdicts.evidence IS 'JSON: how the verdict was reached';
COMMENT ON COLUMN verdicts.created IS 'UTC';

CREATE TABLE members (collection VARCHAR, position INTEGER, label VARCHAR, row_key VARCHAR);
COMMENT ON TABLE members IS 'The rows that make up the output of a stage, in order.';
COMMENT ON COLUMN members.collection IS 'the digest in the stage''s manifest';
COMMENT ON COLUMN members.label IS 'train or heldout; the problem of a trace; kept or rejected; the model evaluated';
COMMENT ON COLUMN members.row_key IS 'the key of a problem, trace or verdict';

CREATE TABLE rejections (run VARCHAR, collection VARCHAR, position INTEGER, reason VARCHAR);
COMMENT ON TABLE rejections IS 'Why a selection left out traces.';
COMMENT ON COLUMN rejections.run IS 'fingerprint of the select stage';
COMMENT ON COLUMN rejections.collection IS 'the selection, as in `members`';
COMMENT ON COLUMN rejections.position IS 'the position of the trace in `members`';
COMMENT ON COLUMN rejections.reason IS 'the first rule that it failed';

CREATE TABLE rollouts (
    trace_key VARCHAR, problem_key VARCHAR, run VARCHAR, step INTEGER, group_index INTEGER, reward DOUBLE,
    advantage DOUBLE, used BOOLEAN, components VARCHAR, advantages FLOAT[], teacher_logprobs FLOAT[],
    state_values FLOAT[], value_targets FLOAT[], step_rewards FLOAT[]);
COMMENT ON TABLE rollouts IS 'What reinforcement learning made of a trace. Joined with `traces` and `updates`, it explains every update.';
COMMENT ON COLUMN rollouts.run IS 'fingerprint of the stage (grpo, ppo, opd, gkd)';
COMMENT ON COLUMN rollouts.step IS 'the training step: its weights sampled the trace, and its updates may learn from it';
COMMENT ON COLUMN rollouts.group_index IS 'which sample of its group, from 0; a group is the rollouts of one problem in one step';
COMMENT ON COLUMN rollouts.reward IS 'null if the verdict is unverifiable, which is neither rewarded nor punished';
COMMENT ON COLUMN rollouts.advantage IS 'of the whole response';
COMMENT ON COLUMN rollouts.used IS 'whether an update learned from it; false, for instance, if all rewards of its group are equal or the answer could not be judged';
COMMENT ON COLUMN rollouts.components IS 'JSON: the parts of the reward by name; null if it is the score of one verifier';
COMMENT ON COLUMN rollouts.advantages IS 'one per token id, if they differ; null if every token has `advantage`';
COMMENT ON COLUMN rollouts.teacher_logprobs IS 'one per token id: the teacher''s natural logs; the credit is these less the student''s own. Null without a teacher';
COMMENT ON COLUMN rollouts.state_values IS 'one per token id: the reward that the value head expected before it, under the weights that sampled; null for given tokens and without a value head';
COMMENT ON COLUMN rollouts.value_targets IS 'one per token id: what the value head is trained towards; less `state_values` this is the advantage before whitening';
COMMENT ON COLUMN rollouts.step_rewards IS 'the process reward model''s probability of each step, in order; null without one';

CREATE TABLE updates (
    run VARCHAR, optimizer_step INTEGER, trace_key VARCHAR, weight DOUBLE, logprobs FLOAT[], old_logprobs FLOAT[],
    reference_logprobs FLOAT[]);
COMMENT ON TABLE updates IS 'Which optimizer update learned from which rollout, and the log-probabilities that it used.';
COMMENT ON COLUMN updates.run IS 'fingerprint of the stage (grpo, ppo, opd)';
COMMENT ON COLUMN updates.optimizer_step IS 'from 1; a training step has several if the stage sets `updates` or `passes`';
COMMENT ON COLUMN updates.weight IS 'of each of its sampled tokens in the loss';
COMMENT ON COLUMN updates.logprobs IS 'one per sampled token: the trainer''s natural logs under the weights before the update';
COMMENT ON COLUMN updates.old_logprobs IS 'the same under the weights that sampled, the denominator of the ratio; null if the step makes one update, where `logprobs` are these';
COMMENT ON COLUMN updates.reference_logprobs IS 'the same under the reference policy (the student without the adapter in training); null if there is no KL term';

CREATE TABLE metrics (run VARCHAR, step INTEGER, name VARCHAR, value DOUBLE);
COMMENT ON TABLE metrics IS 'Training curves, one value per row.';
COMMENT ON COLUMN metrics.run IS 'fingerprint of the stage that trains';

CREATE TABLE alarms (run VARCHAR, name VARCHAR, step INTEGER, evidence VARCHAR, value DOUBLE, threshold DOUBLE);
COMMENT ON TABLE alarms IS 'Signs of reward hacking or collapse: each once per run, at the step where it was first seen.';
COMMENT ON COLUMN alarms.run IS 'fingerprint of the grpo stage';
COMMENT ON COLUMN alarms.name IS 'hacking, worse, format_only, length, entropy, diversity, logprob_gap, kl or no_gradient';
COMMENT ON COLUMN alarms.step IS 'how many steps had been made';
COMMENT ON COLUMN alarms.evidence IS 'what was seen, in words';

CREATE TABLE trace_losses (run VARCHAR, trace_key VARCHAR, epoch INTEGER, loss DOUBLE);
COMMENT ON TABLE trace_losses IS 'The loss of each trace in each epoch of supervised training.';
COMMENT ON COLUMN trace_losses.run IS 'fingerprint of the sft stage';
COMMENT ON COLUMN trace_losses.epoch IS 'from 1';
COMMENT ON COLUMN trace_losses.loss IS 'mean over the tokens that are learned, in nats, before the update that learns them';

CREATE TABLE calls (
    call_id VARCHAR, account VARCHAR, model VARCHAR, request_key VARCHAR, outcome VARCHAR, prompt_tokens INTEGER,
    cached_tokens INTEGER, tokens INTEGER, cost DECIMAL(24, 12), seconds DOUBLE, created TIMESTAMP);
COMMENT ON TABLE calls IS 'A call to an endpoint that may have been billed. A trace may take several, and a call may end without a trace.';
COMMENT ON COLUMN calls.account IS 'the stage that made it; for a judge, the stage and the judge';
COMMENT ON COLUMN calls.model IS 'identity of the model: the endpoint and the model''s name there';
COMMENT ON COLUMN calls.request_key IS 'the trace it was made for, or the judge''s question';
COMMENT ON COLUMN calls.outcome IS 'answered; lost (no usable reply: counted at the most that it can have cost); ended (we hung up: counted by what had arrived)';
COMMENT ON COLUMN calls.cached_tokens IS 'how many of the prompt tokens the endpoint had in its cache';
COMMENT ON COLUMN calls.tokens IS 'of the response';
COMMENT ON COLUMN calls.cost IS 'in the currency of the prices, exact';
COMMENT ON COLUMN calls.created IS 'when it ended, UTC';

CREATE TABLE curation (
    run VARCHAR, position INTEGER, problem_key VARCHAR, kind VARCHAR, evaluation VARCHAR, other VARCHAR,
    other_origin VARCHAR, share DOUBLE, ngram VARCHAR, removed BOOLEAN);
COMMENT ON TABLE curation IS 'What curation found: duplicate problems, and overlap with evaluation sets.';
COMMENT ON COLUMN curation.run IS 'fingerprint of the curate stage';
COMMENT ON COLUMN curation.problem_key IS 'the problem that is removed from the selection; its row in `problems` stays';
COMMENT ON COLUMN curation.kind IS 'exact or near: a duplicate of another problem, or of an item of the set in `evaluation`; evaluation: shares a run of words with such an item';
COMMENT ON COLUMN curation.evaluation IS 'the name of the evaluation set in the YAML; null for duplicates';
COMMENT ON COLUMN curation.other IS 'the readable name of the other problem, or of the item of the evaluation set';
COMMENT ON COLUMN curation.other_origin IS 'file and line of the other';
COMMENT ON COLUMN curation.share IS 'for duplicates, the Jaccard similarity; for overlap, the share of the item''s n-grams that the problem contains';
COMMENT ON COLUMN curation.ngram IS 'the first run of words that both contain';
COMMENT ON COLUMN curation.removed IS 'false if it is only reported';

CREATE TABLE exposure (
    run VARCHAR, label VARCHAR, problem_key VARCHAR, taught_key VARCHAR, share DOUBLE, ngram VARCHAR);
COMMENT ON TABLE exposure IS 'Evaluation problems that overlap with the training data of the model evaluated (contamination).';
COMMENT ON COLUMN exposure.run IS 'fingerprint of the evaluate stage';
COMMENT ON COLUMN exposure.label IS 'the model evaluated';
COMMENT ON COLUMN exposure.problem_key IS 'the evaluation problem';
COMMENT ON COLUMN exposure.taught_key IS 'the training problem that contains most of it';
COMMENT ON COLUMN exposure.share IS 'the share of the evaluation problem''s n-grams that the training problem contains';
COMMENT ON COLUMN exposure.ngram IS 'the first run of words that both contain';

CREATE TABLE step_labels (
    run VARCHAR, example VARCHAR, step INTEGER, label DOUBLE, source VARCHAR, part VARCHAR, trace_key VARCHAR);
COMMENT ON TABLE step_labels IS 'The labels that process reward models were trained and tested on.';
COMMENT ON COLUMN step_labels.run IS 'fingerprint of the prm stage';
COMMENT ON COLUMN step_labels.example IS 'the labelled response: the key of its trace, or a content hash';
COMMENT ON COLUMN step_labels.step IS 'which step of the response, from 0';
COMMENT ON COLUMN step_labels.label IS 'the probability that the step is right';
COMMENT ON COLUMN step_labels.source IS 'exact, slips, rollouts, groups or imported';
COMMENT ON COLUMN step_labels.part IS 'train, heldout or test';
COMMENT ON COLUMN step_labels.trace_key IS 'null if the response is not a trace';

CREATE TABLE searches (
    run VARCHAR, strategy VARCHAR, budget INTEGER, start INTEGER, problem_key VARCHAR, trace_key VARCHAR,
    answer VARCHAR, correct DOUBLE, calls DOUBLE, prompt_tokens DOUBLE, sampled_tokens DOUBLE, scored_tokens DOUBLE);
COMMENT ON TABLE searches IS 'What each strategy chose for each problem with each budget, and what that took. Where the mean over all subsets of the stored samples is known, the row holds that mean and no `trace_key`.';
COMMENT ON COLUMN searches.run IS 'fingerprint of the search stage';
COMMENT ON COLUMN searches.strategy IS 'its name, the settings that differ from the defaults, and the scorer';
COMMENT ON COLUMN searches.budget IS 'samples per problem; for a search step by step, beams';
COMMENT ON COLUMN searches.start IS 'the index of the first sample used; the following ones are used after it, and after the last the first ones';
COMMENT ON COLUMN searches.trace_key IS 'the trace whose answer was chosen';
COMMENT ON COLUMN searches.correct IS '1 or 0 by the verifier, or the share of subsets; null if the verifier could not tell';
COMMENT ON COLUMN searches.prompt_tokens IS 'read by the model: prompts, and the beginnings of responses that it continues, whether or not they are cached';
COMMENT ON COLUMN searches.scored_tokens IS 'read by the scorer of steps';

CREATE TABLE step_scores (score_key VARCHAR, scorer VARCHAR, trace_key VARCHAR, steps DOUBLE[]);
COMMENT ON TABLE step_scores IS 'The probability that each step of a trace is right, by a scorer of steps.';
COMMENT ON COLUMN step_scores.score_key IS 'content hash of scorer and trace';
COMMENT ON COLUMN step_scores.scorer IS 'identity of the scorer';
COMMENT ON COLUMN step_scores.steps IS 'one per step';

CREATE TABLE models (model VARCHAR, name VARCHAR);
COMMENT ON TABLE models IS 'The names of the models that sampled, as the YAML gives them.';
COMMENT ON COLUMN models.model IS 'identity of weights, tokenizer and engine, as in `traces`';
COMMENT ON COLUMN models.name IS '`embedded:NAME`, `stage:NAME`, a directory or a name at the hub; all students that a stage has made with different settings have the same';

CREATE TABLE trace_keys (trace_key VARCHAR);
COMMENT ON TABLE trace_keys IS 'The keys of all traces: how a row that is there already is told.';

CREATE TABLE ingested (table_name VARCHAR, journal VARCHAR, added BIGINT);
COMMENT ON TABLE ingested IS 'Which journal files this database holds, and how many rows each brought: how a lost tail is noticed.';

CREATE VIEW traces AS SELECT * FROM trace_columns;
COMMENT ON VIEW traces IS 'One sampled response to a prompt: by the teacher, in evaluation, or a rollout. A view over the Parquet files in `journal/traces`, whose directory is the variable `workspace` (by default the working directory).';

CREATE VIEW prompts AS
    SELECT prompt_key, any_value(system) AS system, any_value(prompt) AS prompt,
        arg_min(problem_id, problem_key) AS problem_id, arg_min(source, problem_key) AS source,
        arg_min(difficulty, problem_key) AS difficulty
    FROM problems GROUP BY prompt_key;
COMMENT ON VIEW prompts IS 'Each prompt once, under the name of one of the problems that have it.';

CREATE VIEW judgements AS
    SELECT v.*, CASE WHEN json_valid(evidence) THEN evidence ->> '$.failure' END AS failure,
        CASE WHEN json_valid(evidence) THEN list_contains(
            list_append(json_extract_string(evidence, '$.parts[*].evidence.disagreement'),
                evidence ->> '$.disagreement'), 'true') ELSE false END AS disagreement
    FROM verdicts v ANTI JOIN (SELECT verdict_key || '-failed' AS verdict_key FROM verdicts) later USING (verdict_key);
COMMENT ON VIEW judgements IS 'The verdicts that count: one that is a failure of the verifier (`failure`: timeout, memory, crash or error) is left out if another verdict follows. `disagreement`: the verifier''s independent check contradicts its verdict.';

CREATE VIEW disagreements AS
    WITH newest AS (
        SELECT j.*, p.reference, p.problem_id, p.source FROM judgements j JOIN problems p USING (problem_key)
        QUALIFY row_number() OVER (
            PARTITION BY j.trace_key, p.reference, j.settings ORDER BY j.created DESC, j.verdict_key) = 1)
    SELECT trace_key, problem_id, source, 'one verifier' AS kind, verifier, version, outcome, reason,
        NULL AS other_verifier, NULL AS other_version, NULL AS other_outcome, NULL AS other_reason, reference
    FROM newest WHERE disagreement
    UNION ALL
    SELECT a.trace_key, a.problem_id, a.source, 'two verifiers', a.verifier, a.version, a.outcome, a.reason,
        b.verifier, b.version, b.outcome, b.reason, a.reference
    FROM newest a JOIN newest b ON a.trace_key = b.trace_key AND a.reference = b.reference
    WHERE a.outcome = 'correct' AND b.outcome = 'incorrect';
COMMENT ON VIEW disagreements IS 'Traces that one verifier calls correct and another incorrect against the same reference (the newest verdict of each counts), and verdicts whose own evidence disagrees.';

CREATE VIEW verifier_rates AS
    SELECT verifier, version, settings, count(*) AS verdicts,
        count(*) FILTER (outcome = 'correct') AS correct, count(*) FILTER (outcome = 'incorrect') AS incorrect,
        count(*) FILTER (outcome = 'unverifiable' AND failure IS NULL) AS abstained,
        count(*) FILTER (failure = 'timeout') AS timeouts, count(*) FILTER (failure = 'crash') AS crashes,
        count(*) FILTER (failure = 'memory') AS out_of_memory, count(*) FILTER (failure = 'error') AS errors,
        count(*) FILTER (outcome = 'unverifiable') / count(*) AS unverifiable_share,
        avg(seconds) FILTER (failure IS NULL) AS mean_seconds
    FROM judgements GROUP BY ALL;
COMMENT ON VIEW verifier_rates IS 'Each version of each verifier: its verdicts, how often it abstained, and how often it failed instead of judging.';

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
        LEFT JOIN rolled r USING (trace_key)
    WHERE t.finish <> 'step';
COMMENT ON VIEW overview IS 'Every response once, without its texts: its problem, and the newest verdict that counts. `distill traces list` and `export` select from it. The steps of searches are left out.';

CREATE VIEW pass_rates AS
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
COMMENT ON VIEW pass_rates IS 'For each problem, model and verifier: how many traces are correct by the newest verdict of that verifier. Rollouts are left out.';

CREATE VIEW shortest_correct AS
    SELECT o.problem_id, o.source, o.model, o.trace_key, o.thinking_tokens + o.answer_tokens AS tokens
    FROM overview o WHERE o.outcome = 'correct'
    QUALIFY row_number() OVER (PARTITION BY o.problem_key, o.model ORDER BY tokens, o.trace_key) = 1;
COMMENT ON VIEW shortest_correct IS 'The shortest correct trace of each model for each problem, by the newest verdict.';

CREATE VIEW token_prices AS
    SELECT model, source, count(*) AS traces, count(*) FILTER (outcome = 'correct') AS correct,
        sum(thinking_tokens + answer_tokens)::BIGINT AS tokens,
        sum(thinking_tokens + answer_tokens) / nullif(count(*) FILTER (outcome = 'correct'), 0) AS tokens_per_correct
    FROM overview WHERE outcome IS NOT NULL AND NOT rollout GROUP BY ALL;
COMMENT ON VIEW token_prices IS 'What a correct answer costs in tokens, by model and source. Wrong answers are included; of each judged trace the newest verdict counts.';

CREATE VIEW funnel AS
    WITH runs AS (
        SELECT DISTINCT run, collection FROM rejections UNION ALL
        SELECT DISTINCT NULL, collection FROM members ANTI JOIN rejections USING (collection))
    SELECT runs.run, m.collection, p.source, p.difficulty, coalesce(r.reason, 'kept') AS outcome,
        count(*) AS traces, sum(t.thinking_tokens + t.answer_tokens)::BIGINT AS tokens
    FROM runs JOIN members m USING (collection) JOIN traces t ON m.row_key = t.trace_key JOIN prompts p USING (prompt_key)
        LEFT JOIN rejections r ON r.run = runs.run AND r.collection = m.collection AND r.position = m.position
    WHERE m.label IN ('kept', 'rejected') GROUP BY ALL;
COMMENT ON VIEW funnel IS 'From generated to kept, with the reasons of rejection, for each selection. `collection` is its digest; `run` is the fingerprint of the stage, null if nothing was rejected.';

CREATE VIEW lineage AS
    SELECT m.collection, m.position, p.problem_id, p.source, t.trace_key, t.model, t.temperature, j.verifier, j.version, j.outcome
    FROM members m JOIN traces t ON m.row_key = t.trace_key JOIN prompts p USING (prompt_key)
    JOIN judgements j USING (trace_key)
    WHERE m.label = 'kept';
COMMENT ON VIEW lineage IS 'The traces that a student learned from: the model that wrote each, and the verifier that accepted it. `collection` is the digest in the `data` input of the student''s manifest.';

CREATE VIEW continuations AS
    SELECT cut.trace_key, cut.prompt_key, cut.model, cut.max_tokens, longer.trace_key AS continued_by,
        longer.max_tokens AS continued_to, longer.finish
    FROM traces longer JOIN traces cut ON longer.continues = cut.trace_key;
COMMENT ON VIEW continuations IS 'Truncated traces, and the trace that continues each.';

CREATE VIEW outcomes AS
    SELECT t.model, p.source, p.difficulty, count(*) AS traces,
        count(*) FILTER (t.finish = 'stop') AS finished, count(*) FILTER (t.finish = 'length') AS truncated,
        count(*) FILTER (t.finish = 'length' AND t.trace_key IN (SELECT trace_key FROM continuations)) AS continued,
        count(*) FILTER (t.finish = 'refused') AS refused, count(*) FILTER (t.finish = 'empty') AS empty
    FROM traces t LEFT JOIN prompts p USING (prompt_key)
    WHERE t.finish <> 'step' AND t.trace_key NOT IN (SELECT trace_key FROM rollouts) GROUP BY ALL;
COMMENT ON VIEW outcomes IS 'How samples ended, by model, source and difficulty. `continued`: truncated samples that were continued. Rollouts and the steps of searches are left out.';

CREATE VIEW spending AS
    SELECT account, model, count(*) AS calls, count(*) FILTER (outcome <> 'answered') AS unanswered,
        sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(cached_tokens)::BIGINT AS cached_tokens,
        sum(tokens)::BIGINT AS tokens, sum(cost) AS cost, coalesce(sum(cost) FILTER (outcome <> 'answered'), 0) AS lost_cost
    FROM calls GROUP BY ALL;
COMMENT ON VIEW spending IS 'What the calls of each stage to each model took in all runs, and how much of it brought nothing.';

CREATE VIEW answer_prices AS
    WITH paid AS (SELECT request_key AS trace_key, sum(cost) AS cost FROM calls GROUP BY 1)
    SELECT o.model, o.source, count(*) AS traces, count(*) FILTER (outcome = 'correct') AS correct, sum(paid.cost) AS cost,
        (sum(paid.cost) / nullif(count(*) FILTER (outcome = 'correct'), 0))::DOUBLE AS cost_per_correct
    FROM overview o JOIN paid USING (trace_key) GROUP BY ALL;
COMMENT ON VIEW answer_prices IS 'What a correct answer costs in money, by model and source. The cost of wrong answers and lost calls is included; the newest verdict counts.';

CREATE VIEW contamination AS
    SELECT run, evaluation, count(DISTINCT problem_key) AS problems, count(DISTINCT other) AS items,
        count(DISTINCT problem_key) FILTER (removed) AS removed, max(share) AS largest_share,
        arg_max(ngram, share) AS for_example
    FROM curation WHERE evaluation IS NOT NULL GROUP BY ALL;
COMMENT ON VIEW contamination IS 'For each evaluation set: how many problems overlap with it, by a shared run of words or as near duplicates, and with how many of its items.';

CREATE VIEW lessons AS
    SELECT l.run, l.trace_key, any_value(p.problem_id) AS problem_id, any_value(p.source) AS source,
        count(*) AS epochs, arg_min(l.loss, l.epoch) AS first_loss, arg_max(l.loss, l.epoch) AS last_loss,
        arg_min(l.loss, l.epoch) - arg_max(l.loss, l.epoch) AS learned
    FROM trace_losses l LEFT JOIN traces t USING (trace_key) LEFT JOIN prompts p USING (prompt_key)
    GROUP BY l.run, l.trace_key;
COMMENT ON VIEW lessons IS 'Each trace that a student learned from, with its first and last loss. A trace with a small first loss taught little; one whose last loss stays far above the others'' may be mislabelled.';

CREATE VIEW rollout_lengths AS
    SELECT r.run, r.step, p.source, p.difficulty, count(*) AS rollouts,
        avg(t.thinking_tokens + t.answer_tokens) AS tokens, avg(r.reward) AS reward,
        count(*) FILTER (t.finish = 'length') / count(*) AS truncated
    FROM rollouts r JOIN traces t USING (trace_key) JOIN problems p USING (problem_key) GROUP BY ALL;
COMMENT ON VIEW rollout_lengths IS 'For each step of reinforcement learning, by source and difficulty: mean tokens and reward of a rollout, and the share that was truncated.';

CREATE VIEW strategies AS
    SELECT run, strategy, budget, count(DISTINCT problem_key) AS problems, avg(correct) AS accuracy,
        avg(calls) AS calls, avg(sampled_tokens) AS sampled_tokens, avg(scored_tokens) AS scored_tokens
    FROM searches GROUP BY ALL;
COMMENT ON VIEW strategies IS 'The accuracy of each strategy with each budget, and what an answer took on average.';
