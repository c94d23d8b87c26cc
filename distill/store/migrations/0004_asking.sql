-- How a trace was asked for beyond its prompt: a beginning that was given, bounds on the thinking; which of
-- its tokens were not sampled; and which trace goes on where another was cut.

ALTER TABLE traces ADD COLUMN prefix VARCHAR;
ALTER TABLE traces ADD COLUMN budget VARCHAR;
ALTER TABLE traces ADD COLUMN forced INTEGER[];
ALTER TABLE traces ADD COLUMN cut VARCHAR;
ALTER TABLE traces ADD COLUMN continues VARCHAR;
COMMENT ON COLUMN traces.prompt_key IS 'what the problem asks, however it was put to the model; problems that ask the same share their traces';
COMMENT ON COLUMN traces.trace_key IS 'content hash of prompt, model, sampling, seed and sample index; also of messages, prefix and thinking budget where settings made them others than the problem''s';
COMMENT ON COLUMN traces.prefix IS 'the beginning of the response that was given, not sampled; null where none was';
COMMENT ON COLUMN traces.budget IS 'the thinking budget, as JSON; null where there was none';
COMMENT ON COLUMN traces.forced IS 'the places in token_ids that were not sampled: the prefix, and what the thinking budget put in; null where there are none';
COMMENT ON COLUMN traces.cut IS 'the whole text of a response that ended at max_tokens, to be continued from; null where it ended by itself';
COMMENT ON COLUMN traces.continues IS 'the cut trace that this one goes on from; null where it begins by itself';

CREATE VIEW continuations AS
    SELECT cut.trace_key, cut.prompt_key, cut.model, cut.max_tokens, longer.trace_key AS continued_by,
        longer.max_tokens AS continued_to, longer.finish
    FROM traces longer JOIN traces cut ON longer.continues = cut.trace_key;
COMMENT ON VIEW continuations IS 'Traces that were cut at their limit, and the trace that goes on from each.';

CREATE VIEW outcomes AS
    SELECT t.model, p.source, p.difficulty, count(*) AS traces,
        count(*) FILTER (t.finish = 'stop') AS finished, count(*) FILTER (t.finish = 'length') AS truncated,
        count(*) FILTER (t.finish = 'length' AND t.trace_key IN (SELECT trace_key FROM continuations)) AS continued,
        count(*) FILTER (t.finish = 'refused') AS refused, count(*) FILTER (t.finish = 'empty') AS empty
    FROM traces t LEFT JOIN prompts p USING (prompt_key)
    WHERE t.trace_key NOT IN (SELECT trace_key FROM rollouts) GROUP BY ALL;
COMMENT ON VIEW outcomes IS
    'How samples ended, by model, source and difficulty. `continued` of the truncated ones were gone on with. Without rollouts.';
