-- How long responses get while a policy is trained, apart for each difficulty: where more thinking goes.

CREATE VIEW rollout_lengths AS
    SELECT r.run, r.step, p.source, p.difficulty, count(*) AS rollouts,
        avg(t.thinking_tokens + t.answer_tokens) AS tokens, avg(r.reward) AS reward,
        count(*) FILTER (t.finish = 'length') / count(*) AS truncated
    FROM rollouts r JOIN traces t USING (trace_key) JOIN problems p USING (problem_key) GROUP BY ALL;
COMMENT ON VIEW rollout_lengths IS
    'Of each step of reinforcement learning, family and difficulty: mean tokens of a rollout, mean reward, share that was cut.';
