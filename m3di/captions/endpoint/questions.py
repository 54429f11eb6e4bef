"""Which slices a server is asked about, and the exact question with the key that its answer is kept under."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from m3di.captions.captioner import ShownPlane
from m3di.captions.endpoint import images, prompts
from m3di.config import EndpointConfig
from stores.recipe import digest_of

SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"caption": {"type": "string"}},
    "required": ["caption"],
    "additionalProperties": False,
}


@dataclass(frozen=True, eq=False)
class Question:
    """One request.

    Attributes:
        key: Digest of pixels, model, prompt, wanted parameters and versions; of nothing that names a volume.
        prompt: The words.
        image: The pixels.
    """

    key: str
    prompt: str
    image: UInt8[np.ndarray, "y x"]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As chat completions take them: words, then the picture."""
        data = base64.b64encode(images.png(self.image)).decode("ascii")
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return [{"role": "user", "content": [{"type": "text", "text": self.prompt}, picture]}]


Wordings = tuple[Question, ...]  # the same slice in other words; the next is asked when the one before was refused


def wanted(endpoint: EndpointConfig) -> dict[str, Any]:
    """The parameters of a request, before a server has its say about them."""
    schema = {"name": "caption", "strict": True, "schema": dict(SCHEMA)}
    return {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "max_tokens": reply_limit(endpoint),
        "temperature": endpoint.temperature,
    }


def reply_limit(endpoint: EndpointConfig) -> int:
    """Tokens that a reply may have: twice the usual 1.5 a word, and some for the JSON around them."""
    return 3 * endpoint.max_words + 32


def anchors(count: int, every: int) -> range:
    """Which of `count` slices are sent: the middle of each stride, and the middle one when there is no whole half."""
    return range(every // 2, count, every) if count > every // 2 else range(count // 2, count, max(count, 1))


def questions(plane: ShownPlane, endpoint: EndpointConfig) -> list[Wordings]:
    """What is asked about the anchors of a plane, in their order."""
    return [_wordings(plane, index, endpoint) for index in anchors(len(plane.slices), endpoint.every)]


def _wordings(plane: ShownPlane, index: int, endpoint: EndpointConfig) -> Wordings:
    image = images.scaled(plane.images[index], endpoint.image_px)
    asked = {
        "pixels": images.pixels_digest(image), "model": endpoint.model, "parameters": wanted(endpoint),
        "images": images.VERSION, "prompts": prompts.VERSION,
    }  # fmt: skip
    texts = [
        prompts.prompt_of(plane.facts[index], wording=wording, max_words=endpoint.max_words)
        for wording in range(prompts.WORDINGS)
    ]
    return tuple(Question(digest_of({**asked, "prompt": text}), text, image) for text in texts)
