-- Which evaluation problems a student has been trained on, or on something that has a run of words with them.

CREATE TABLE exposure (
    run VARCHAR, label VARCHAR, problem_key VARCHAR, taught_key VARCHAR, share DOUBLE, ngram VARCHAR);
COMMENT ON TABLE exposure IS 'Evaluation problems that overlap with what the model under test was trained on: contamination, beside each score.';
COMMENT ON COLUMN exposure.run IS 'fingerprint of the evaluate stage';
COMMENT ON COLUMN exposure.label IS 'the model evaluated';
COMMENT ON COLUMN exposure.problem_key IS 'the evaluation problem';
COMMENT ON COLUMN exposure.taught_key IS 'of the training problems, the one that has most of it';
COMMENT ON COLUMN exposure.share IS 'of the evaluation problem''s runs of words, those found in the training problem';
COMMENT ON COLUMN exposure.ngram IS 'the first run of words that both have';
