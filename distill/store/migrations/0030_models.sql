-- What people call the models that sampled: traces name them by their content.

CREATE TABLE models (model VARCHAR, name VARCHAR);
COMMENT ON TABLE models IS 'What the models that sampled are called, as the YAML of the stage named them.';
COMMENT ON COLUMN models.model IS 'as in `traces`: the identity of weights, tokenizer and engine';
COMMENT ON COLUMN models.name IS '`embedded:NAME`, `stage:NAME`, a directory or the hub''s name; the same for each student that a stage has made by its settings';
