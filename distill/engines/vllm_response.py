"""One response in vLLM: the requests ("pieces") that it takes, and how their outputs are put together.

Most responses are one piece, sampled to its end. A response with a thinking budget, or one that ends after a step, is
followed token by token (`distill.engines.budget`): where tokens must be inserted, the piece is aborted and another one
continues after them. vLLM's prefix cache holds everything but the last block. Each piece has its own seed, so that
none repeats its predecessor's random numbers.

Tokens that were not sampled (a request's prefix, what a budget inserted) get the model's log-probabilities from further
requests at the end: one single-token request per place, at the response's temperature and without truncation; or, if
there are many places and the temperature is 1 (or 0, for which temperature 1 is reported), one pass over all of them.
This module does not run vLLM: that is `distill.engines.vllm`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.engines.base import seed_of
from distill.engines.budget import NOTHING, UNBOUNDED, Budget, Course, StepEnd
from distill.types import Request

SINGLES = 16
"""Up to this many places are scored one by one: each costs at most one block of the cache."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One request to vLLM: the ids to continue, and the sampling parameters. ``places`` are the positions in the
    response that it scores; empty for a piece that is sampled."""

    ids: tuple[int, ...]
    parameters: Any
    places: tuple[int, ...] = ()


class Response:
    """The response to ``request``, of at most ``limit`` tokens, which begins with ``given``.

    ``one_pass``: places cannot be scored one by one.
    """

    def __init__(
        self,
        request: Request,
        prompt: str,
        prompt_ids: tuple[int, ...],
        *,
        given: tuple[int, ...],
        limit: int,
        budget: Budget | None,
        step: StepEnd | None,
        stop_ids: Sequence[int],
        one_pass: bool,
    ) -> None:
        self.request, self.prompt, self.prompt_ids = request, prompt, prompt_ids
        self.begun = time.time()
        self.tokens: list[int] = list(given)
        self.logprobs: list[float | None] = [None] * len(given)
        self.stopped = False
        self._limit, self._stop_ids, self._one_pass = limit, list(stop_ids), one_pass
        steered = budget is not None or step is not None
        self._course = Course(budget or UNBOUNDED, limit, given, stop_ids, step) if steered else None
        self._given, self._pieces, self._unknown = len(given), 0, 0

    @property
    def forced(self) -> tuple[int, ...]:
        """The places that were not sampled."""
        put_in = self._course.forced if self._course else ()
        return (*range(self._given), *(place for place in put_in if place < len(self.tokens)))

    @property
    def full(self) -> bool:
        """What was given leaves no room to sample."""
        return self._given >= self._limit

    @property
    def stepped(self) -> bool:
        """It ended after a step, and could continue."""
        return bool(self._course and self._course.stepped) and not self.stopped and len(self.tokens) < self._limit

    @property
    def done(self) -> bool:
        """Sampling has ended and every log-probability is known."""
        return self._over and not self._unknown

    @property
    def known(self) -> list[float]:
        """The log-probabilities, once it is done."""
        return [logprob for logprob in self.logprobs if logprob is not None]

    @property
    def seconds(self) -> float:
        return time.time() - self.begun

    def begin(self) -> list[Piece]:
        """The first pieces. If nothing is left to sample, they only score what was given."""
        self._put_in()
        return self._next()

    def take(self, piece: Piece, output: Any) -> list[Piece] | None:
        """Record the output of ``piece``. None: it continues; else it is over or must be aborted, and these follow."""
        if piece.places:
            self._note_places(piece, output)
            return []
        sample = output.outputs[0]
        broken = self._draw(sample.token_ids, chosen(sample.logprobs))
        if not broken and not output.finished:
            return None
        self.stopped = not broken and sample.finish_reason == "stop"
        return self._next()

    def _draw(self, tokens: Sequence[int], logprobs: Sequence[float]) -> bool:
        """Record sampled tokens, one by one if there is a budget. True: the next token is not sampled."""
        if self._course is None:
            self.tokens += tokens
            self.logprobs += logprobs
            return False
        for token, logprob in zip(tokens, logprobs, strict=True):
            self.tokens.append(token)
            self.logprobs.append(logprob)
            stands = self._course.take(token)
            if stands is not None:
                del self.tokens[stands:], self.logprobs[stands:]
            if stands is not None or self._course.over or self._course.next != NOTHING:
                self._put_in()
                return True
        return False

    def _put_in(self) -> None:
        course = self._course
        while course and course.next != NOTHING and len(self.tokens) < self._limit:
            self.tokens.append(course.next)
            self.logprobs.append(None)
            course.take(course.next)

    @property
    def _over(self) -> bool:
        return self.stopped or len(self.tokens) >= self._limit or bool(self._course and self._course.over)

    def _next(self) -> list[Piece]:
        return self._scoring() if self._over else [self._drawing()]

    def _drawing(self) -> Piece:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, request = self.request.sampling, self.request
        if self._pieces:
            request = replace(request, key=f"{request.key}/{self._pieces}")
        self._pieces += 1
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=self._limit - len(self.tokens),
            seed=seed_of(request),
            stop_token_ids=self._stop_ids,
            logprobs=0,  # the sampled token's only
            flat_logprobs=True,
            detokenize=False,  # done by the engine, with the think tags kept where they are special tokens
            output_kind=RequestOutputKind.DELTA if self._course else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        return Piece((*self.prompt_ids, *self.tokens), parameters)

    def _scoring(self) -> list[Piece]:
        """The pieces that score the places that were not sampled."""
        places = tuple(place for place, logprob in enumerate(self.logprobs) if logprob is None)
        self._unknown = len(places)
        if not places:
            return []
        if self._one_pass or (len(places) > SINGLES and self.request.sampling.temperature in (0, 1)):
            return [self._over_all(places)]
        return [self._of_one(place) for place in places]

    def _of_one(self, place: int) -> Piece:
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=self.request.sampling.temperature,
            max_tokens=1,
            logprob_token_ids=[self.tokens[place]],
            flat_logprobs=True,
            detokenize=False,
        )
        return Piece((*self.prompt_ids, *self.tokens[:place]), parameters, (place,))

    def _over_all(self, places: tuple[int, ...]) -> Piece:
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )
        return Piece((*self.prompt_ids, *self.tokens[: places[-1] + 1]), parameters, places)

    def _note_places(self, piece: Piece, output: Any) -> None:
        if piece.parameters.prompt_logprobs is not None:
            logprobs = prompt_logprobs(output)
            for place in piece.places:
                self.logprobs[place] = logprobs[len(self.prompt_ids) + place]
        else:
            (place,) = piece.places
            self.logprobs[place] = output.outputs[0].logprobs[0][self.tokens[place]].logprob
        self._unknown -= len(piece.places)


def chosen(flat: Any) -> list[float]:
    """The log-probabilities of the chosen tokens, which are the first entry of each position in vLLM's flat format."""
    return [flat.logprobs[start] for start in flat.start_indices]


def prompt_logprobs(output: Any) -> list[float]:
    """The log-probability of each token of the prompt; NaN for the first, which has none."""
    flat = output.prompt_logprobs
    spans = zip(flat.start_indices, flat.end_indices, strict=True)
    return [flat.logprobs[start] if end > start else float("nan") for start, end in spans]
