-- Why curation took problems out, or would have: what each has in common with which other.

CREATE TABLE curation (
    run VARCHAR, position INTEGER, problem_key VARCHAR, kind VARCHAR, evaluation VARCHAR, other VARCHAR,
    other_origin VARCHAR, share DOUBLE, ngram VARCHAR, removed BOOLEAN);
COMMENT ON TABLE curation IS 'What curation found: duplicates among problems, and overlap with evaluation sets.';
COMMENT ON COLUMN curation.run IS 'fingerprint of the curate stage';
COMMENT ON COLUMN curation.problem_key IS 'the problem that goes; it stays in `problems`';
COMMENT ON COLUMN curation.kind IS 'exact or near: a duplicate of another problem; evaluation: overlap with an evaluation set';
COMMENT ON COLUMN curation.evaluation IS 'the evaluation set, by its name in YAML; null for duplicates';
COMMENT ON COLUMN curation.other IS 'the problem, or the item of the evaluation set, by its readable name';
COMMENT ON COLUMN curation.other_origin IS 'file and line of the other';
COMMENT ON COLUMN curation.share IS 'of duplicates the Jaccard similarity; else the share of the item''s n-grams found in the problem';
COMMENT ON COLUMN curation.ngram IS 'the first run of words of the item that the problem has too';
COMMENT ON COLUMN curation.removed IS 'false where it is only told';

CREATE VIEW contamination AS
    SELECT run, evaluation, count(DISTINCT problem_key) AS problems, count(DISTINCT other) AS items,
        count(DISTINCT problem_key) FILTER (removed) AS removed, max(share) AS largest_share,
        arg_max(ngram, share) AS for_example
    FROM curation WHERE kind = 'evaluation' GROUP BY ALL;
COMMENT ON VIEW contamination IS 'For each evaluation set: how many problems overlap with it, and with how many of its items.';
