"""The settings of an endpoint are checked when the YAML is read: errors name the line and show no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli.open import load
from pipeline.errors import InputError

WRONG_OPTIONS = [
    ("base_url: api.example.com", "engine.base_url: expected http(s)://host/path"),
    ("base_url: 'https://me:hunter2@example.com'", "engine.base_url: (host example.com) must hold no user"),
    ("base_url: 'https://example.com?key=hunter2'", "engine.base_url: (host example.com) must hold no user"),
    ("base_url: 'https://example.com/#hunter2'", "engine.base_url: (host example.com) must hold no user"),
    ("base_url: 'https://me:hunter2/v1'", "engine.base_url: expected http(s)://host/path"),
    ("base_url: 'https://example.com:70000/v1'", "engine.base_url: expected http(s)://host/path"),
    ("base_url: 'http://[::1/v1'", "engine.base_url: expected http(s)://host/path"),
    ("base_url: 'http://h/v1/chat/completions/'", "engine.base_url: leave out /chat/completions, which is added"),
    ("base_url: 'https://example.com', max_cost: 1", "engine: max_cost needs price_input"),
    ("base_url: 'https://example.com', key_from: sk-hunter2", "engine.key_from: expected the name of an environment"),
    ("base_url: 'https://example.com', key_from: gsk_hunter2", "engine.key_from: expected the name of an environment"),
    ("base_url: 'https://example.com', headers_from: {X: sk-hunter2}", "expected the name of an environment"),
    ("base_url: 'https://example.com', headers_from: {'X Y': X}", "expected names of headers"),
    ("base_url: 'https://example.com', headers_from: {Host: X}", "Host is set for each call; leave it out"),
    ("base_url: 'https://example.com', headers_from: {X: X, x: X}", "headers_from: names a header twice"),
    ("base_url: 'https://example.com', api_key: sk-hunter2", "engine.api_key: unknown key; valid: kind, base_url,"),
]


@pytest.mark.parametrize(("options", "said"), [(f"kind: openai, {options}", said) for options, said in WRONG_OPTIONS])
def test_wrong_options_are_reported_with_their_line_and_without_secrets(
    tmp_path: Path, options: str, said: str
) -> None:
    assert said in error_of(tmp_path, options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("kind: openia, api_key: sk-hunter2", "engine.kind: 'openia' is not valid; did you mean 'openai'?"),
        ("base_url: 'http://h', api_key: sk-hunter2", "engine.kind: is missing; valid: transformers, vllm, openai"),
    ],
)
def test_a_wrong_or_missing_engine_kind_is_explained(tmp_path: Path, options: str, said: str) -> None:
    assert said in error_of(tmp_path, options)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("thinking: {budget: 10}", "thinking: dialect openai has no thinking budget"),
        ("thinking: {least: 10}", "thinking: an endpoint cannot be made to think for at least 10"),
        ("prompting: {prefill: 'Okay'}", "prompting.prefill: dialect openai cannot continue a prefilled response"),
    ],
)
def test_what_the_server_cannot_do_is_refused_when_the_yaml_is_read(tmp_path: Path, asked: str, said: str) -> None:
    assert said in error_of(tmp_path, "kind: openai, base_url: 'http://h'", asked)


def error_of(tmp_path: Path, engine: str, more: str = "") -> str:
    """The error on loading a pipeline with this engine: one line, without the secret."""
    file = tmp_path / "p.yaml"
    file.write_text(
        "stages:\n  problems: {sources: [{family: calc, train: 1}]}\n"
        f"  generate:\n    problems: problems\n    teacher: m\n    engine: {{{engine}}}\n    {more}\n"
    )
    with pytest.raises(InputError) as caught:
        load(file)
    said = str(caught.value)
    assert said.startswith(f"{file}:") and "\n" not in said and "hunter2" not in said
    return said
