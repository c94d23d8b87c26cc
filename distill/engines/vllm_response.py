"""One response on its way through vLLM: the pieces it is asked for in, and what they come to.

Most responses are one piece, drawn to its end. One with a thinking budget, or that ends after a step, is followed token
by token (`distill.engines.budget`): where something must be put in, its piece is dropped, and another begins
behind what now stands; vLLM's prefix cache has all of it but the last block. Each piece has a seed of its
own, so that none draws its predecessor's numbers again.

What was not drawn (a request's prefix, what a budget put in) gets the model's log-probabilities from further
requests when the response is over: one of a single token for each place, at the response's temperature,
with no truncation; or, where there are many places and the temperature is 1 (or 0, which is told at 1), one
pass over them all. Nothing here drives vLLM: that is `distill.engines.vllm`.
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
"""Places up to which log-probabilities are asked for one by one: each costs a block of the cache or less."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to ask of vLLM: the ids to go on from, and its sampling parameters. ``places`` of the response
    are those whose log-probabilities it is to tell; none for a piece that is drawn."""

    ids: tuple[int, ...]
    parameters: Any
    places: tuple[int, ...] = ()


class Response:
    """The response to ``request``. ``limit`` are the tokens it may have, ``given`` those it begins with.

    ``one_pass`` tells that places cannot be asked for one by one.
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
        """The places that were not drawn."""
        put_in = self._course.forced if self._course else ()
        return (*range(self._given), *(place for place in put_in if place < len(self.tokens)))

    @property
    def stepped(self) -> bool:
        """It ends with a step, after which it may go on."""
        return bool(self._course and self._course.stepped) and not self.stopped and len(self.tokens) < self._limit

    @property
    def done(self) -> bool:
        """Nothing is drawn any more, and all log-probabilities are there."""
        return self._over and not self._unknown

    @property
    def known(self) -> list[float]:
        """The log-probabilities, when it is done."""
        return [logprob for logprob in self.logprobs if logprob is not None]

    @property
    def seconds(self) -> float:
        return time.time() - self.begun

    def begin(self) -> list[Piece]:
        """What to ask for first. Where nothing is left to draw, only the log-probabilities of what is given."""
        self._put_in()
        return self._next()

    def take(self, piece: Piece, output: Any) -> list[Piece] | None:
        """Note what came of ``piece``. None: it goes on. Else it is over, or to be dropped, and these follow."""
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
        """Note tokens drawn, one by one if there is a budget. True: the next token is not the model's to choose."""
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
        """Pieces that tell the log-probabilities of the places that were not drawn."""
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
            told = prompt_logprobs(output)
            for place in piece.places:
                self.logprobs[place] = told[len(self.prompt_ids) + place]
        else:
            (place,) = piece.places
            self.logprobs[place] = output.outputs[0].logprobs[0][self.tokens[place]].logprob
        self._unknown -= len(piece.places)


def chosen(flat: Any) -> list[float]:
    """Of vLLM's flat log-probabilities those of the chosen tokens: the first entry of each position."""
    return [flat.logprobs[start] for start in flat.start_indices]


def prompt_logprobs(output: Any) -> list[float]:
    """One for each token of the prompt; the first has none, and NaN here."""
    flat = output.prompt_logprobs
    spans = zip(flat.start_indices, flat.end_indices, strict=True)
    return [flat.logprobs[start] if end > start else float("nan") for start, end in spans]
