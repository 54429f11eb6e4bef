"""Asks a server many questions at once: each answer is kept before its thread asks for the next."""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Final

from m3di.captions.endpoint.client import Client, Failure, Kind, open_client
from m3di.captions.endpoint.limits import Breaker, Meter, used
from m3di.captions.endpoint.offers import Negotiation
from m3di.captions.endpoint.questions import Question, Wordings, wanted
from m3di.captions.endpoint.replies import Replies, Reply
from m3di.config import EndpointConfig
from m3di.events import Check
from stores.errors import RefusedError, ResourceError

LONGEST_WAIT_S: Final = 120.0  # a server that asks for more is asked again by another run
_LONGEST_BACKOFF_S: Final = 20.0
_KEPT: Final = "everything answered is kept; run the same command again later to continue"
_POLL_S: Final = 0.2  # how soon a signal is noticed while requests are under way


class _Stopped(Exception):  # noqa: N818
    """Another thread failed, or a signal came: ask nothing more."""


class Asker:
    """Answers questions from what is kept, and by a server.

    Args:
        endpoint: The server, and how to deal with it.
        replies: Where answers are kept.
        backoff_s: First wait after a failure; it doubles.
    """

    def __init__(self, endpoint: EndpointConfig, replies: Replies, *, backoff_s: float = 0.5) -> None:
        self._endpoint = endpoint
        self._replies = replies
        self._backoff_s = backoff_s
        self._jitter = random.Random()
        self._wanted = wanted(endpoint)
        self._negotiation = Negotiation()
        self._meter = Meter(endpoint)
        self._breaker = Breaker(endpoint.max_poison, patience_s=20 * backoff_s)
        self._turn = threading.Lock()  # held by the one thread that waits out a rate limit and tries again
        self._stop = threading.Event()
        self._counts: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._counting = threading.Lock()

    def ask(self, asked: Sequence[Wordings], *, check: Check) -> dict[str, Reply | None]:
        """The answers by the key of the first wording; None where the model refused or the server failed.

        Args:
            asked: Questions, each with its other wordings.
            check: Called now and then; may raise to stop, after requests under way have been answered and kept.

        Raises:
            ResourceError: E_NETWORK, when a cap is reached or the server cannot go on; what was answered is kept.
            RefusedError: E_NETWORK or E_CONFIG, when the server does not take requests as they are.
        """
        answers: dict[str, Reply | None] = {}
        missing: dict[str, Wordings] = {}
        for wordings in asked:
            reply = kept_reply(self._replies, wordings)
            if reply is not None:
                self._count(wordings, reply, "kept", answers)
            else:
                missing[wordings[0].key] = wordings
        if missing:
            self._stop.clear()
            with open_client(self._endpoint) as client:
                answers |= self._ask_all(client, list(missing.values()), check)
        return answers

    def summary(self) -> dict[str, Any]:
        """What was asked and answered in this run, JSON-ready."""
        tokens = self._meter.tokens
        return {
            "requests": self._meter.requests,
            "answered": self._counts["answered"],
            "kept": self._counts["kept"],
            "refused": sum(self._refusals.values()),
            "refused_by": dict(sorted(self._refusals.items())),
            "poison": self._breaker.poison,
            "tokens": asdict(tokens),
            "cost": round(tokens.cost(self._endpoint), 6),
        }

    def _count(self, wordings: Wordings, reply: Reply, how: str, answers: dict[str, Reply | None]) -> None:
        """Note the last reply about a slice."""
        with self._counting:
            self._counts[how] += 1
            if reply.refused:
                self._refusals[reply.refused] += 1
            answers[wordings[0].key] = None if reply.refused else reply

    def _ask_all(self, client: Client, missing: Sequence[Wordings], check: Check) -> dict[str, Reply | None]:
        """Ask; pictures that the server failed on come last, when it has had time to recover."""
        answers: dict[str, Reply | None] = {}
        tries = self._endpoint.image_attempts
        with ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="captions") as pool:

            def ask(asked: Sequence[Wordings], tries: int) -> dict[Wordings, str]:
                futures = {pool.submit(self._one, client, wordings, answers, tries): wordings for wordings in asked}
                return self._gather(futures, pool, check)

            failed = ask(missing, max(1, tries - 1))
            if failed and tries > 1:
                failed = ask(list(failed), 1)
        for wordings, words in failed.items():
            self._breaker.give_up(words)
            answers[wordings[0].key] = None
        return answers

    def _gather(
        self, futures: Mapping[Future[str], Wordings], pool: ThreadPoolExecutor, check: Check
    ) -> dict[Wordings, str]:
        """Wait for all requests; what the server said to those that it failed on."""
        failed: dict[Wordings, str] = {}
        left = set(futures)
        try:
            while left:
                done, left = wait(left, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if error is None and future.result():
                        failed[futures[future]] = future.result()
                    elif error is not None and not isinstance(error, _Stopped):  # which says nothing: another will
                        raise error
                check()
        except BaseException:
            self._stop.set()  # requests under way are still answered and kept
            pool.shutdown(cancel_futures=True)
            raise
        return failed

    def _one(self, client: Client, wordings: Wordings, answers: dict[str, Reply | None], tries: int) -> str:
        """One slice: ask, keep the answer, and when it is a refusal ask once more in other words.

        Returns:
            What the server says to a picture that it failed on `tries` times; empty when it answered.
        """
        try:
            for question in wordings:
                kept = self._replies.reply(question.key)
                reply = Reply.from_dict(kept) if kept is not None else self._persist(client, question, tries)
                if kept is None:
                    self._replies.commit_reply(question.key, reply.to_dict())
                if not reply.refused:
                    break
        except _Failed as failed:
            return failed.words
        except BaseException:
            self._stop.set()  # here, so that this thread does not take up the next slice
            raise
        self._count(wordings, reply, "answered", answers)
        return ""

    def _persist(self, client: Client, question: Question, tries: int) -> Reply:
        """Send a request until it is answered, as often as its failures allow.

        After a rate limit one thread at a time waits and tries again, so that they do not race for the quota.
        """
        failures: Counter[Kind] = Counter()
        with ExitStack() as turn:
            while True:
                try:
                    return self._once(client, question)
                except Failure as failure:
                    failures[failure.kind] += 1
                    self._judge(failure, failures, question, tries)
                    again = time.monotonic() + self._delay(failure, failures.total())
                    if failure.kind is Kind.RATE and failures[Kind.RATE] == 1:
                        turn.enter_context(self._turn)
                if self._stop.wait(max(0.0, again - time.monotonic())):
                    raise _Stopped

    def _once(self, client: Client, question: Question) -> Reply:
        """Send a request once, lowering the offer for as long as it is a parameter that the server will not take."""
        while True:
            if self._stop.is_set():
                raise _Stopped
            offer = self._negotiation.offer
            reserve = self._meter.begin(question)
            reply = None
            try:
                reply = client.ask(question, offer.parameters(self._wanted))
            except Failure as failure:
                if failure.kind is not Kind.REQUEST or not self._negotiation.lower(
                    offer, failure.parameter, failure.words
                ):
                    raise
                continue
            finally:
                self._meter.end(reserve, used(reply, question, self._endpoint) if reply is not None else None)
            self._negotiation.accept(offer)
            self._breaker.succeed()
            return reply

    def _judge(self, failure: Failure, failures: Counter[Kind], question: Question, tries: int) -> None:
        """Return when the request is worth sending again; raise what its failure means otherwise."""
        kind, words, url = failure.kind, failure.words, self._endpoint.url
        if kind is Kind.DENIED:
            hint = "check captions.endpoint.url and model, and the key in the environment"
            raise RefusedError("E_NETWORK", f"{url} refuses: {words}", hint=hint)
        if kind is Kind.QUOTA:
            raise ResourceError("E_NETWORK", f"no quota left at {url}: {words}", hint=_KEPT)
        if kind is Kind.REQUEST:
            if self._breaker.answers == 0 and not self._counts["kept"]:
                hint = "can the model see pictures? The words are the server's"
                raise RefusedError("E_NETWORK", f"{url} takes no such request: {words}", hint=hint)
            raise _Failed(words)
        if failure.wait_s is not None and failure.wait_s > LONGEST_WAIT_S:
            raise ResourceError("E_NETWORK", f"{url} asks to wait {failure.wait_s:.0f} s: {words}", hint=_KEPT)
        if kind is not Kind.RATE:
            self._breaker.fail(question.key, words)
        if kind is Kind.SERVER and failures[kind] >= tries:
            raise _Failed(words)
        if failures[kind] >= self._endpoint.attempts:
            what = "asks to wait again and again" if kind is Kind.RATE else "cannot be reached"
            raise ResourceError("E_NETWORK", f"{url} {what}: {words}", hint=_KEPT)

    def _delay(self, failure: Failure, failures: int) -> float:
        """Seconds to wait: as the server asks, else twice as long each time, a little at random."""
        backoff = min(self._backoff_s * 2 ** (failures - 1), _LONGEST_BACKOFF_S) * self._jitter.uniform(0.75, 1.25)
        return backoff if failure.wait_s is None else failure.wait_s + 0.05 * backoff


class _Failed(Exception):  # noqa: N818
    """The server fails on a picture.

    Args:
        words: What it says.
    """

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


def kept_reply(replies: Replies, wordings: Wordings) -> Reply | None:
    """The answer about a slice that needs no request any more, its last refusal included; None when one is needed."""
    reply = None
    for question in wordings:
        kept = replies.reply(question.key)
        if kept is None:
            return None
        reply = Reply.from_dict(kept)
        if not reply.refused:
            break
    return reply
