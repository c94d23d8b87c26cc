-- What verifiers say, as questions about them are asked: the verdicts that stand, where they contradict
-- each other, and how often each verifier fails or abstains.

CREATE VIEW judgements AS
    SELECT v.*, CASE WHEN json_valid(evidence) THEN evidence ->> '$.failure' END AS failure,
        CASE WHEN json_valid(evidence) THEN list_contains(
            list_append(json_extract_string(evidence, '$.parts[*].evidence.disagreement'),
                evidence ->> '$.disagreement'), 'true') ELSE false END AS disagreement
    FROM verdicts v ANTI JOIN (SELECT verdict_key || '-failed' AS verdict_key FROM verdicts) later USING (verdict_key);
COMMENT ON VIEW judgements IS
    'The verdicts that stand: a failure (`failure`: timeout, memory, crash or error) that was followed by another verdict is left out. `disagreement` says that the verifier contradicted its own independent check.';

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
COMMENT ON VIEW disagreements IS
    'Traces that one verifier calls correct and another incorrect against the same reference (the newest verdict of each counts), and verdicts whose own evidence disagrees.';

CREATE VIEW verifier_rates AS
    SELECT verifier, version, settings, count(*) AS verdicts,
        count(*) FILTER (outcome = 'correct') AS correct, count(*) FILTER (outcome = 'incorrect') AS incorrect,
        count(*) FILTER (outcome = 'unverifiable' AND failure IS NULL) AS abstained,
        count(*) FILTER (failure = 'timeout') AS timeouts, count(*) FILTER (failure = 'crash') AS crashes,
        count(*) FILTER (failure = 'memory') AS out_of_memory, count(*) FILTER (failure = 'error') AS errors,
        count(*) FILTER (outcome = 'unverifiable') / count(*) AS unverifiable_share,
        avg(seconds) FILTER (failure IS NULL) AS mean_seconds
    FROM judgements GROUP BY ALL;
COMMENT ON VIEW verifier_rates IS
    'Each version of each verifier: its verdicts, how often it abstained, and how often it failed instead of judging.';
