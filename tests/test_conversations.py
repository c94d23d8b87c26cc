"""What is learned from a conversation, with chat templates like those of the models that people distil into.

The contract: a student is trained on the very prompt that an engine will give it, learns the whole response, and the
token that ends its turn is one that the engine stops at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch")

from tiny import chat_tokenizer, tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.engines.base import response_of
from distill.engines.transformers import TransformersEngine
from distill.thinking import opened, split_thinking
from distill.training.conversations import conversation, from_messages
from distill.training.export import MODEL, export_student, load_model
from distill.turns import stop_ids, turn_end
from distill.types import Message, Request, Sampling
from pipeline.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (  # an assistant's turn has its thinking only after the last question, and an empty one where it has none
    "{% set asked = messages | map(attribute='role') | list %}{% set at = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{% if loop.index0 > at.last %}{{ '<think>\n' + thought + '\n</think>\n\n' + said }}{% else %}{{ said }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_THINKING = QWEN3.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DEEPSEEK_R1 = (  # it cuts the thinking out of every turn, and opens it in the prompt
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
GLM = (  # turns end where the next one begins
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """``end`` is the token that ends a turn, ``eos`` the tokenizer's own end token."""

    template: str
    end: str
    eos: str


STYLES = {
    "qwen2.5 instruct": Style(CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen2.5 base": Style(CHATML, "<|im_end|>", "<|endoftext|>"),
    "qwen3": Style(QWEN3, "<|im_end|>", "<|im_end|>"),
    "qwen thinking": Style(QWEN_THINKING, "<|im_end|>", "<|im_end|>"),
    "llama 3": Style(LLAMA3, "<|eot_id|>", "<|eot_id|>"),
    "gemma": Style(GEMMA, "<end_of_turn>", "<eos>"),
    "deepseek r1": Style(DEEPSEEK_R1, "<|end|>", "<|end|>"),
    "glm": Style(GLM, "<|endoftext|>", "<|endoftext|>"),
}
MARKS = [
    "<bos>",
    "<eos>",
    "<think>",
    "</think>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|User|>",
    "<|Assistant|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
]
EVERY = pytest.mark.parametrize("name", STYLES)
QUESTION: Message = {"role": "user", "content": "What is 2+2?"}


def tokenizer_of(style: Style) -> Any:
    """A byte-level tokenizer, so that any text survives a round trip."""
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(m) for m in MARKS if "think" not in m])
    core.add_tokens([AddedToken(m) for m in MARKS if "think" in m])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=style.eos, bos_token="<bos>", pad_token=style.eos)
    made.chat_template = style.template
    return made


def learned(tokenizer: Any, messages: list[Message]) -> tuple[str, str]:
    """(the text before the first learned token, the text that is learned)"""
    row = from_messages(tokenizer, "k", messages)
    return tuple(  # type: ignore[return-value]
        tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for ids in (row.prompt, [i for i, m in zip(row.input_ids, row.labels_mask, strict=True) if m])
    )


@EVERY
@pytest.mark.parametrize("thinking", ["two and two", ""])
def test_a_student_learns_the_response_after_the_prompt_that_the_engine_sends(name: str, thinking: str) -> None:
    style, tokenizer = STYLES[name], tokenizer_of(STYLES[name])
    prompt, response_text = learned(tokenizer, conversation((QUESTION,), thinking, "It is 4."))
    assert prompt == tokenizer.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True)
    assert response_text.endswith(style.end) and response_text.count(style.end) == 1
    response = split_thinking(response_text.removesuffix(style.end), opened(prompt))
    assert (response.thinking, response.answer, response.closed) == (thinking, "It is 4.", True)


@EVERY
def test_the_engine_stops_at_the_end_token_that_is_learned(name: str) -> None:
    style, tokenizer = STYLES[name], tokenizer_of(STYLES[name])
    assert tokenizer.convert_tokens_to_ids(style.end) in stop_ids(None, tokenizer)
    assert tokenizer.convert_tokens_to_ids(style.eos) in stop_ids(None, tokenizer)


@EVERY
def test_the_last_of_several_turns_is_always_learned_and_no_question_is(name: str) -> None:
    style, tokenizer = STYLES[name], tokenizer_of(STYLES[name])
    first: list[Message] = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "Two."}]
    _, text = learned(tokenizer, [*first, *conversation((QUESTION,), "two and two", "It is 4.")])
    assert "It is 4." in text and text.endswith(style.end) and "What" not in text and "1+1" not in text
    assert ("Two." in text) == (name in ("qwen2.5 instruct", "qwen2.5 base", "llama 3", "gemma"))


def test_a_student_stops_at_the_end_of_its_turn_when_sampled_and_when_exported(tmp_path: Any) -> None:
    """For a base model whose end of text is another token: in our engine, and in others by the exported files."""
    tokenizer = tokenizer_of(STYLES["qwen2.5 base"])
    end, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    model = tiny(vocab_size=len(tokenizer), tie_word_embeddings=False)
    model.generation_config.eos_token_id = eos
    model.lm_head.weight.data[end] = 100 * model.lm_head.weight.data.mean(0)
    completions = list(_sampled(model, tokenizer))
    assert any(c.token_ids[-1] == end and len(c.token_ids) < 40 for c in completions)
    assert all(end not in c.token_ids[:-1] and "<|im_end|>" not in response_of(c).answer for c in completions)
    export_student(model, tokenizer, tmp_path)
    assert load_model(tmp_path / MODEL).generation_config.eos_token_id == sorted([end, eos])


def _sampled(model: Any, tokenizer: Any) -> Any:
    engine = TransformersEngine(model, tokenizer, model_identity="m")
    return engine.generate([Request(str(i), (QUESTION,), Sampling(max_tokens=40)) for i in range(16)])


def test_conversations_that_cannot_be_learned_are_refused() -> None:
    """A tokenizer without an end token, a conversation without an answer, and one that the template refuses."""
    strict = tokenizer_of(Style("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
                                + GEMMA, "<end_of_turn>", "<eos>"))  # fmt: skip
    asked: list[Message] = [{"role": "system", "content": "Be brief."}, QUESTION]
    for refused in (
        lambda: from_messages(strict, "k", conversation(tuple(asked), "", "4")),
        lambda: TransformersEngine(tiny(), strict, model_identity="m").render(asked),
    ):
        with pytest.raises(InputError, match=r"refuses a conversation of system, user.*: no system role") as raised:
            refused()
        assert "\n" not in str(raised.value)
    endless = tokenizer_of(STYLES["glm"])
    endless.eos_token = None
    assert turn_end(endless) is None
    with pytest.raises(InputError, match="could not learn to stop"):
        from_messages(endless, "k", conversation((QUESTION,), "", "4"))
    with pytest.raises(InputError, match="no supervised token"):
        from_messages(chat_tokenizer(), "k", [{"role": "user", "content": "ab"}])
    with pytest.raises(InputError, match="it ends with a turn of the user"):
        from_messages(tokenizer_of(STYLES["glm"]), "k", [QUESTION])
