"""Google's Perspective API, until it shuts down at the end of 2026."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import requests

from sasa_lib import checks
from sasa_lib.evaluation.scorers.scorer import RefusedError, Scorer, ScorerError

PERSPECTIVE_URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
PERSPECTIVE_KEY = "PERSPECTIVE_API_KEY"
PERSPECTIVE_ATTEMPTS = 8  # the waits between them add up to two minutes; quotas are per minute
PERSPECTIVE_REFUSALS = {
    "COMMENT_EMPTY": "it counts as empty; leave it out",
    "COMMENT_TOO_LONG": "it has more than 20,480 bytes; shorten it",
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": "it is not taken for English; leave it out",
}


def perspective_scorer(
    key: str,
    *,
    url: str = PERSPECTIVE_URL,
    queries_per_second: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Scorer:
    """Make a scorer of Google's Perspective API, attribute TOXICITY, or of one that speaks alike.

    Google changed the model without notice or version (Pozzobon et al. 2023), so the version here
    is that of the interface alone, and scores of different years are not comparable. Texts are
    sent with doNotStore.

    Parameters
    ----------
    key : str
        Sent as a header, so that it is in no address that an error or a proxy might show.
    url : str
        Address of the method comments:analyze.
    queries_per_second : float
        At most so many, above 0; a new key has a quota of 1.
    sleep : callable
        Waits for a number of seconds.

    Returns
    -------
    Scorer
        It tries `PERSPECTIVE_ATTEMPTS` times, with growing random waits, before it gives up on a
        quota, a failure of the server or of the connection.
    """
    if not key:
        raise ScorerError(
            f"the scorer 'perspective' needs an API key in the environment variable "
            f"{PERSPECTIVE_KEY}; without one use 'minilm' or 'detoxify'"
        )
    queries_per_second = checks.check_number("queries_per_second", queries_per_second, above=0)
    session = requests.Session()
    session.headers["X-Goog-Api-Key"] = key
    last = -float("inf")

    def ask(text: str) -> float:
        nonlocal last
        body = {
            "comment": {"text": text},
            "languages": ["en"],
            "requestedAttributes": {"TOXICITY": {}},
            "doNotStore": True,
        }
        problem = ""
        for attempt in range(PERSPECTIVE_ATTEMPTS):
            # Random, so that processes that were refused together do not come back together.
            pause = 2 ** (attempt - 1) * random.uniform(0.5, 1.5) if attempt else 0.0
            pause = max(pause, 1 / queries_per_second - (time.monotonic() - last))
            if pause > 0:
                sleep(pause)
            last = time.monotonic()
            try:
                # A redirection would lead to a page about the end of the service.
                answer = session.post(url, json=body, timeout=30, allow_redirects=False)
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                problem = type(error).__name__
                continue
            if answer.status_code != 429 and answer.status_code < 500:
                return _perspective_score(answer)
            problem = f"HTTP {answer.status_code}"
        raise ScorerError(
            f"Perspective did not answer {PERSPECTIVE_ATTEMPTS} attempts ({problem}); try again "
            "later, or use 'minilm' or 'detoxify' (Perspective ends with 2026)"
        )

    def score(texts: list[str]) -> np.ndarray:
        return np.array([ask(text) for text in texts])

    return Scorer("perspective", "v1alpha1", score, asks_service=True)


def _perspective_score(answer: requests.Response) -> float:
    try:
        content = answer.json()
        if answer.status_code == 200:
            return float(content["attributeScores"]["TOXICITY"]["summaryScore"]["value"])
        error = content["error"]
        kinds = {detail.get("errorType") or detail.get("reason") for detail in error["details"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        kinds = set()
    # A wrong key is a 400 as well.
    if answer.status_code == 400 and "API_KEY_INVALID" not in kinds:
        known = [PERSPECTIVE_REFUSALS[kind] for kind in kinds if kind in PERSPECTIVE_REFUSALS]
        # Not the message of the service, which may quote the text.
        unknown = f"HTTP 400 {', '.join(sorted(map(str, kinds)))}".strip()
        raise RefusedError(known[0] if known else f"{unknown}; leave it out")
    raise ScorerError(
        f"Perspective is shut down (its end was announced for the end of 2026) or refuses the key "
        f"in {PERSPECTIVE_KEY} (HTTP {answer.status_code}); use 'minilm' or 'detoxify' instead"
    )
