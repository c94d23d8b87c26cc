-- The descriptions that were unclear or missing. They are the text of docs/store.md.

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

COMMENT ON COLUMN trace_columns.trace_key IS 'content hash of prompt, model, sampling, seed and sample index; also of messages, prefix and thinking budget if the stage''s settings change them';
COMMENT ON COLUMN trace_columns.prompt_key IS 'the prompt of the problem; problems with the same prompt share their traces';
COMMENT ON COLUMN trace_columns.engine IS 'transformers, vllm, openai or imported';
COMMENT ON COLUMN trace_columns.sample_index IS 'which sample of this prompt, from 0';
COMMENT ON COLUMN trace_columns.finish IS 'stop (ended by itself), length (reached max_tokens), refused (by an endpoint''s content filter) or empty';
COMMENT ON COLUMN trace_columns.closed IS 'whether the thinking ended';
COMMENT ON COLUMN trace_columns.thinking IS 'the text inside the think tags';
COMMENT ON COLUMN trace_columns.answer IS 'the text after the think tags, which verifiers judge';
COMMENT ON COLUMN trace_columns.logprobs IS 'one per token id: natural logs under the distribution sampled from';
COMMENT ON COLUMN trace_columns.prefix IS 'the beginning of the response, if it was given and not sampled; else null';
COMMENT ON COLUMN trace_columns.budget IS 'JSON: the thinking budget; null if there was none';
COMMENT ON COLUMN trace_columns.forced IS 'positions in token_ids that were not sampled (the prefix, and what the thinking budget inserted); null if there are none';
COMMENT ON COLUMN trace_columns.cut IS 'the whole text of a response that reached max_tokens, from which it can be continued; else null';
COMMENT ON COLUMN trace_columns.continues IS 'the truncated trace that this one continues; else null';

COMMENT ON TABLE verdicts IS 'What a version of a verifier said about a trace. Old verdicts are kept.';
COMMENT ON COLUMN verdicts.verdict_key IS 'content hash of trace, problem, verifier, version and settings';
COMMENT ON COLUMN verdicts.problem_key IS 'the problem whose reference the answer was compared with';
COMMENT ON COLUMN verdicts.settings IS 'JSON: the settings of the verifier';
COMMENT ON COLUMN verdicts.score IS 'from 0 to 1';
COMMENT ON COLUMN verdicts.reason IS 'why, in a few words';
COMMENT ON COLUMN verdicts.evidence IS 'JSON: how the verdict was reached';
COMMENT ON COLUMN verdicts.created IS 'UTC';

COMMENT ON TABLE members IS 'The rows that make up the output of a stage, in order.';
COMMENT ON COLUMN members.label IS 'train or heldout; the problem of a trace; kept or rejected; the model evaluated';
COMMENT ON COLUMN members.row_key IS 'the key of a problem, trace or verdict';
COMMENT ON COLUMN members.reason IS 'why a trace was rejected, in selections made by an old version; now in `rejections`';

COMMENT ON TABLE rejections IS 'Why a selection left out traces.';
COMMENT ON COLUMN rejections.collection IS 'the selection, as in `members`';
COMMENT ON COLUMN rejections.position IS 'the position of the trace in `members`';
COMMENT ON COLUMN rejections.reason IS 'the first rule that it failed';

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

COMMENT ON TABLE updates IS 'Which optimizer update learned from which rollout, and the log-probabilities that it used.';
COMMENT ON COLUMN updates.run IS 'fingerprint of the stage (grpo, ppo, opd)';
COMMENT ON COLUMN updates.optimizer_step IS 'from 1; a training step has several if the stage sets `updates` or `passes`';
COMMENT ON COLUMN updates.weight IS 'of each of its sampled tokens in the loss';
COMMENT ON COLUMN updates.logprobs IS 'one per sampled token: the trainer''s natural logs under the weights before the update';
COMMENT ON COLUMN updates.old_logprobs IS 'the same under the weights that sampled, the denominator of the ratio; null if the step makes one update, where `logprobs` are these';
COMMENT ON COLUMN updates.reference_logprobs IS 'the same under the reference policy (the student without the adapter in training); null if there is no KL term';

COMMENT ON TABLE metrics IS 'Training curves, one value per row.';
COMMENT ON COLUMN metrics.run IS 'fingerprint of the stage that trains';

COMMENT ON TABLE alarms IS 'Signs of reward hacking or collapse: each once per run, at the step where it was first seen.';
COMMENT ON COLUMN alarms.step IS 'how many steps had been made';
COMMENT ON COLUMN alarms.evidence IS 'what was seen, in words';

COMMENT ON COLUMN trace_losses.loss IS 'mean over the tokens that are learned, in nats, before the update that learns them';

COMMENT ON TABLE calls IS 'A call to an endpoint that may have been billed. A trace may take several, and a call may end without a trace.';
COMMENT ON COLUMN calls.account IS 'the stage that made it; for a judge, the stage and the judge';
COMMENT ON COLUMN calls.model IS 'identity of the model: the endpoint and the model''s name there';
COMMENT ON COLUMN calls.request_key IS 'the trace it was made for, or the judge''s question';
COMMENT ON COLUMN calls.outcome IS 'answered; lost (no usable reply: counted at the most that it can have cost); ended (we hung up: counted by what had arrived)';
COMMENT ON COLUMN calls.cached_tokens IS 'how many of the prompt tokens the endpoint had in its cache';
COMMENT ON COLUMN calls.cost IS 'in the currency of the prices, exact';
COMMENT ON COLUMN calls.created IS 'when it ended, UTC';

COMMENT ON TABLE curation IS 'What curation found: duplicate problems, and overlap with evaluation sets.';
COMMENT ON COLUMN curation.problem_key IS 'the problem that is removed from the selection; its row in `problems` stays';
COMMENT ON COLUMN curation.kind IS 'exact or near: a duplicate of another problem, or of an item of the set in `evaluation`; evaluation: shares a run of words with such an item';
COMMENT ON COLUMN curation.evaluation IS 'the name of the evaluation set in the YAML; null for duplicates';
COMMENT ON COLUMN curation.other IS 'the readable name of the other problem, or of the item of the evaluation set';
COMMENT ON COLUMN curation.share IS 'for duplicates, the Jaccard similarity; for overlap, the share of the item''s n-grams that the problem contains';
COMMENT ON COLUMN curation.ngram IS 'the first run of words that both contain';
COMMENT ON COLUMN curation.removed IS 'false if it is only reported';

COMMENT ON TABLE exposure IS 'Evaluation problems that overlap with the training data of the model evaluated (contamination).';
COMMENT ON COLUMN exposure.taught_key IS 'the training problem that contains most of it';
COMMENT ON COLUMN exposure.share IS 'the share of the evaluation problem''s n-grams that the training problem contains';
COMMENT ON COLUMN exposure.ngram IS 'the first run of words that both contain';

COMMENT ON TABLE step_labels IS 'The labels that process reward models were trained and tested on.';
COMMENT ON COLUMN step_labels.example IS 'the labelled response: the key of its trace, or a content hash';
COMMENT ON COLUMN step_labels.step IS 'which step of the response, from 0';
COMMENT ON COLUMN step_labels.label IS 'the probability that the step is right';
COMMENT ON COLUMN step_labels.trace_key IS 'null if the response is not a trace';

COMMENT ON TABLE searches IS 'What each strategy chose for each problem with each budget, and what that took. Where the mean over all subsets of the stored samples is known, the row holds that mean and no `trace_key`.';
COMMENT ON COLUMN searches.strategy IS 'its name, the settings that differ from the defaults, and the scorer';
COMMENT ON COLUMN searches.budget IS 'samples per problem; for a search step by step, beams';
COMMENT ON COLUMN searches.start IS 'the index of the first sample used; the following ones are used after it, and after the last the first ones';
COMMENT ON COLUMN searches.trace_key IS 'the trace whose answer was chosen';
COMMENT ON COLUMN searches.correct IS '1 or 0 by the verifier, or the share of subsets; null if the verifier could not tell';
COMMENT ON COLUMN searches.prompt_tokens IS 'read by the model: prompts, and the beginnings of responses that it continues, whether or not they are cached';
COMMENT ON COLUMN searches.scored_tokens IS 'read by the scorer of steps';

COMMENT ON TABLE step_scores IS 'The probability that each step of a trace is right, by a scorer of steps.';
COMMENT ON COLUMN step_scores.steps IS 'one per step';

COMMENT ON TABLE models IS 'The names of the models that sampled, as the YAML gives them.';
COMMENT ON COLUMN models.model IS 'identity of weights, tokenizer and engine, as in `traces`';
COMMENT ON COLUMN models.name IS '`embedded:NAME`, `stage:NAME`, a directory or a name at the hub; all students that a stage has made with different settings have the same';

COMMENT ON VIEW answer_prices IS 'What a correct answer costs in money, by model and source. The cost of wrong answers and lost calls is included; the newest verdict counts.';
COMMENT ON VIEW contamination IS 'For each evaluation set: how many problems overlap with it, by a shared run of words or as near duplicates, and with how many of its items.';
COMMENT ON VIEW continuations IS 'Truncated traces, and the trace that continues each.';
COMMENT ON VIEW funnel IS 'From generated to kept, with the reasons of rejection, for each selection. `collection` is its digest; `run` is the fingerprint of the stage, null if nothing was rejected or an old version made the selection.';
COMMENT ON VIEW judgements IS 'The verdicts that count: one that is a failure of the verifier (`failure`: timeout, memory, crash or error) is left out if another verdict follows. `disagreement`: the verifier''s independent check contradicts its verdict.';
COMMENT ON VIEW lessons IS 'Each trace that a student learned from, with its first and last loss. A trace with a small first loss taught little; one whose last loss stays far above the others'' may be mislabelled.';
COMMENT ON VIEW lineage IS 'The traces that a student learned from: the model that wrote each, and the verifier that accepted it. `collection` is the digest in the `data` input of the student''s manifest.';
COMMENT ON VIEW outcomes IS 'How samples ended, by model, source and difficulty. `continued`: truncated samples that were continued. Rollouts and the steps of searches are left out.';
COMMENT ON VIEW overview IS 'Every response once, without its texts: its problem, and the newest verdict that counts. `distill traces list` and `export` select from it. The steps of searches are left out.';
COMMENT ON VIEW pass_rates IS 'For each problem, model and verifier: how many traces are correct by the newest verdict of that verifier. Rollouts are left out.';
COMMENT ON VIEW prompts IS 'Each prompt once, under the name of one of the problems that have it.';
COMMENT ON VIEW rollout_lengths IS 'For each step of reinforcement learning, by source and difficulty: mean tokens and reward of a rollout, and the share that was truncated.';
COMMENT ON VIEW shortest_correct IS 'The shortest correct trace of each model for each problem, by the newest verdict.';
COMMENT ON VIEW spending IS 'What the calls of each stage to each model took in all runs, and how much of it brought nothing.';
COMMENT ON VIEW strategies IS 'The accuracy of each strategy with each budget, and what an answer took on average.';
COMMENT ON VIEW token_prices IS 'What a correct answer costs in tokens, by model and source. Wrong answers are included; of each judged trace the newest verdict counts.';
