-- Why a trace was left out was kept with the members of a selection, whose collection is named by what is kept and what
-- is not: rules that came to the same for other reasons found these there already. Now they are kept by run.

CREATE TABLE rejections (run VARCHAR, collection VARCHAR, position INTEGER, reason VARCHAR);
COMMENT ON TABLE rejections IS 'Why a selection left traces out.';
COMMENT ON COLUMN rejections.run IS 'fingerprint of the select stage';
COMMENT ON COLUMN rejections.position IS 'the trace, by its place in `members`';
COMMENT ON COLUMN rejections.reason IS 'the first rule that it did not pass';
COMMENT ON COLUMN members.reason IS 'why a trace was rejected, where an older distill has made the selection; see `rejections`';

CREATE OR REPLACE VIEW funnel AS
    WITH runs AS (
        SELECT DISTINCT run, collection FROM rejections UNION ALL
        SELECT DISTINCT NULL, collection FROM members ANTI JOIN rejections USING (collection))
    SELECT runs.run, m.collection, p.source, p.difficulty, coalesce(r.reason, m.reason, 'kept') AS outcome,
        count(*) AS traces, sum(t.thinking_tokens + t.answer_tokens)::BIGINT AS tokens
    FROM runs JOIN members m USING (collection) JOIN traces t ON m.row_key = t.trace_key JOIN prompts p USING (prompt_key)
        LEFT JOIN rejections r ON r.run = runs.run AND r.collection = m.collection AND r.position = m.position
    WHERE m.label IN ('kept', 'rejected') GROUP BY ALL;
COMMENT ON VIEW funnel IS
    'From generated to kept, by reason of rejection, for each selection: `collection` is its digest, `run` the fingerprint of the stage (null where nothing was rejected, or by an older distill).';

COMMENT ON COLUMN curation.kind IS
    'exact or near: a duplicate of another problem, or where `evaluation` is not null of an item of that set; evaluation: a run of words in common with one';
COMMENT ON COLUMN curation.share IS
    'of duplicates the Jaccard similarity; else the share of the item''s n-grams found in the problem';

CREATE OR REPLACE VIEW contamination AS
    SELECT run, evaluation, count(DISTINCT problem_key) AS problems, count(DISTINCT other) AS items,
        count(DISTINCT problem_key) FILTER (removed) AS removed, max(share) AS largest_share,
        arg_max(ngram, share) AS for_example
    FROM curation WHERE evaluation IS NOT NULL GROUP BY ALL;
COMMENT ON VIEW contamination IS
    'For each evaluation set: how many problems overlap with it, by a run of words or as near duplicates, and with how many of its items.';
