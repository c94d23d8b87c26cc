-- What the ratios and the KL term of an update were made of, where one query could not tell.

ALTER TABLE updates ADD COLUMN old_logprobs FLOAT[];
ALTER TABLE updates ADD COLUMN reference_logprobs FLOAT[];
COMMENT ON COLUMN updates.old_logprobs IS 'the same under the weights that sampled, by which ratios divide; null where a step makes one update, and logprobs are these';
COMMENT ON COLUMN updates.reference_logprobs IS 'the same by the student without its new adapter; null where no KL term asks for it';
