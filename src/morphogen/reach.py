"""Whether the Hugging Face hub can be asked at all."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from typing import Final, Literal

#: So long the hub has to answer at all, before a library asks it that would try for minutes.
ANSWER_SECONDS: Final = 2.5
#: Answers of a proxy, or of a hub that is down.
_NO_ANSWER: Final = frozenset({407, 502, 503, 504})


def unreachable(kind: Literal["datasets", "models"], name: str) -> str | None:
    """Why the hub cannot be asked for `name`, known after `ANSWER_SECONDS` at most; None where it answers, and where
    the libraries are told not to ask."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    said: list[str | None] = []
    asking = threading.Thread(
        target=lambda: said.append(_asked(f"{constants.ENDPOINT}/api/{kind}/{name}")), daemon=True
    )
    asking.start()
    asking.join(ANSWER_SECONDS)  # looking up a name may take longer, and has no limit of its own
    reason = said[0] if said else f"no answer within {ANSWER_SECONDS:g} s"
    return reason and f"{constants.ENDPOINT} cannot be reached ({reason})"


def _asked(url: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return str(error) if error.code in _NO_ANSWER else None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)  # certificates: see the library
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__
