"""What clients may send. A parameter that this server lacks is refused by name, unless its value changes nothing."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.serve.errors import refuse
from tasks.serve.limits import MAX_STOPS


def check_text(text: str) -> str:
    """A lone surrogate, which JSON can spell, is no text that a tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(check_text)]
Tokens = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Input = (
    Text
    | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    | Tokens
    | Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]
)
Stop = Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "best_of": (1,),
    "suffix": ("",), "tools": ([],), "tool_choice": ("none",),
    "functions": ([],), "function_call": ("none",), "parallel_tool_calls": (), "response_format": ({"type": "text"},),
    "store": (False,), "metadata": ({},), "modalities": (["text"],), "audio": (), "prediction": (), "service_tier": ("auto", "default"),
    "reasoning_effort": (), "web_search_options": (), "verbosity": (), "prompt_cache_key": (), "safety_identifier": (),
}  # fmt: skip
"""OpenAI's parameters that this server lacks, and the values that ask for nothing; null is one of each."""


class ApiRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text
    user: str | None = None
    """Whom the request is for; not used."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        """Raises ApiError for a parameter that would have to be ignored."""
        if not isinstance(values, dict):
            return values
        lacking = NEUTRAL.keys() - cls.model_fields.keys() & values.keys()
        for name in sorted(lacking):
            value = values[name]
            if value is not None and value not in NEUTRAL[name]:
                raise refuse(f"{name} is not supported by this server: leave it out", name, "unsupported_parameter")
        return {name: value for name, value in values.items() if name not in lacking}


class EmbeddingRequest(ApiRequest):
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """The first so many numbers of each vector, scaled to length 1 again."""


class ClassifyRequest(ApiRequest):
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
        | Annotated[
            list[Annotated[list[Text], Field(min_length=1, fail_fast=True)]], Field(min_length=1, fail_fast=True)
        ]
    )
    """A text or several; pairs of texts or lists of words for a model that learned these."""
    truncate: bool | None = None
    """Cut too long texts off as in training; default: if the training did."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class WritingRequest(ApiRequest):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Default 1; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> "WritingRequest":
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options is only for stream=true", "stream_options")
        return self

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]


class CompletionRequest(WritingRequest):
    prompt: Input
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Default 16."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """Give the log-probabilities of the tokens and of this many likeliest ones."""
    echo: bool | None = None
    """Put the prompt before the completion."""

    @model_validator(mode="after")
    def _check_echo(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise refuse("echo with logprobs is not supported by this server: leave one of them out", "echo")
        return self


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None
    refusal: None = None
    """This and the next ones stand in answers that are sent back."""
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(WritingRequest):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Default: as many as the context holds."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Give this many of the likeliest tokens as well."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise refuse("max_tokens and max_completion_tokens are one setting: give one of them", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs is only for logprobs=true", "top_logprobs")
        return self
