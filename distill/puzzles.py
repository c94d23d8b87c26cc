"""Problems out of reasoning-gym (the extra ``reasoning-gym``): a data set's name in, problems with stable ids out.

The library makes entry number i of a seed from seed + i, so two sets of neighbouring seeds share most of
their entries; here the seed is a hash of (name, seed, split), far from every other. What its own scorer
is not to be believed of (`distill.verifiers.reasoning_gym`), such as an entry without an answer, is passed
over. Called by the problems stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from distill.types import Problem
from distill.verifiers.reasoning_gym import INSTALL, reference_fault, reference_of
from pipeline.errors import InputError

TRIES = 20
SPAN = 1 << 31
"""Seeds lie below this, so that every generator takes them."""
UNSTABLE = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"})
"""Made by iterating over sets: other entries in every Python process (measured with 0.1.25)."""


def make(
    name: str, config: Mapping[str, Any], seed: int, split: str, wanted: int, instruction: str = ""
) -> Iterator[Problem]:
    """``wanted`` different problems of a set; `InputError` where there are not so many."""
    if not wanted:
        return
    if name in UNSTABLE:
        raise InputError(f"reasoning_gym {name}: its entries differ from run to run, so that nothing could be cached")
    entries = _data_set(name, config, seed, split, TRIES * (wanted + 10))
    seen: set[str] = set()
    fault = "too few different problems"
    for index in range(len(entries)):
        entry = entries[index]
        if not isinstance(entry["answer"], str) or entry["question"] in seen:
            continue
        reference = reference_of(name, entry, config)
        if found := reference_fault(reference):
            fault = found
            continue
        seen.add(entry["question"])
        yield _problem(name, entry["question"], reference, split, instruction)
        if len(seen) == wanted:
            return
    raise InputError(f"reasoning_gym {name}: cannot give {wanted} problems ({split}): {fault}")


def source_of(name: str) -> str:
    return f"reasoning_gym/{name}"


def _data_set(name: str, config: Mapping[str, Any], seed: int, split: str, size: int) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise InputError(f"source reasoning_gym {INSTALL}") from None
    if fixed := {"seed", "size"} & config.keys():
        raise InputError(f"reasoning_gym {name}: {min(fixed)} is not to be configured; it comes from the pipeline")
    text = "\x1f".join(("reasoning_gym", name, str(seed), split))
    first = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % SPAN
    try:
        return reasoning_gym.create_dataset(name, **{**config, "seed": first, "size": size})
    except Exception as error:
        raise InputError(f"reasoning_gym {name}: {' '.join(str(error).split())[:200]}") from None


def _problem(name: str, question: str, reference: str, split: str, instruction: str) -> Problem:
    prompt = f"{question}\n{instruction}" if instruction else question
    digest = hashlib.blake2b(prompt.encode(), digest_size=6).hexdigest()
    return Problem(
        id=f"reasoning_gym/{name}/{digest}",
        prompt=prompt,
        reference=reference,
        verifier="reasoning_gym",
        source=source_of(name),
        split=split,
        licence="Apache-2.0",
    )
