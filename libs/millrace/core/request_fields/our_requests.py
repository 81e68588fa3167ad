"""The other fields of ours: of whole requests, and of what lies in them."""

from __future__ import annotations

from types import MappingProxyType

from .field import GENERATING, OPENAI, Kind, Place, RequestField, at

TIMEOUT_MS = RequestField(
    name="timeout_ms",
    kind=Kind.INTEGER,
    meaning="Longest time from arrival to the end, milliseconds.",
    names=at(GENERATING, "timeout_ms"),
    default="600,000",
    proto=("RequestOptions.timeout_ms",),
    low=1,
    changes_answer=False,
)

OPTIONS: tuple[RequestField, ...] = (
    RequestField(
        name="priority",
        kind=Kind.WORD,
        meaning="Which waiting requests go first.",
        names=at(GENERATING, "priority"),
        default="normal",
        proto=("RequestOptions.priority",),
        choices=("high", "normal", "low"),
        spellings=((0, None),),
        changes_answer=False,
    ),
    TIMEOUT_MS,
    RequestField(
        name="cache",
        kind=Kind.WORD,
        meaning="Use of the response cache, which holds answers of deterministic requests.",
        names=at(GENERATING, "cache"),
        default="bypass",
        proto=("RequestOptions.cache",),
        choices=("bypass", "use", "refresh"),
        changes_answer=False,
    ),
    RequestField(
        name="idempotency_key",
        kind=Kind.TEXT,
        meaning="The same key with the same body runs once; up to 128 characters.",
        names=at(GENERATING, "idempotency_key"),
        default="none",
        proto=("RequestOptions.idempotency_key",),
        changes_answer=False,
    ),
)

BODY: tuple[RequestField, ...] = (
    RequestField(
        name="model",
        kind=Kind.TEXT,
        meaning="Served name or alias of the model.",
        names=at(GENERATING, "model"),
        default="the server's default model",
        proto=("GenerateRequest.model", "ChatRequest.model"),
    ),
    RequestField(
        name="messages",
        kind=Kind.LIST,
        meaning="The conversation so far.",
        names=at((Place.CHAT,), "messages"),
        default="required",
        proto=("ChatRequest.messages",),
        instead=MappingProxyType(
            {
                place: f"conversations go to {Place.CHAT}; {place} takes prompt"
                for place in (Place.COMPLETIONS, Place.GENERATE)
            }
        ),
    ),
    RequestField(
        name="prompt",
        kind=Kind.PROMPT,
        meaning="What to continue.",
        names=at((Place.COMPLETIONS, Place.GENERATE), "prompt"),
        default="required",
        proto=("GenerateRequest.text", "GenerateRequest.tokens", "TokenIds.ids"),
        instead=MappingProxyType(
            {Place.CHAT: f"prompts go to {Place.COMPLETIONS}; {Place.CHAT} takes messages"}
        ),
    ),
    RequestField(
        name="requests",
        kind=Kind.LIST,
        meaning="Up to 1,024 requests, each as POST /generate takes it.",
        names=at((Place.BATCH,), "requests"),
        default="required",
        proto=("GenerateBatchRequest.requests",),
        instead=MappingProxyType(
            dict.fromkeys(GENERATING, f"many requests in one go to {Place.BATCH}")
        ),
    ),
    RequestField(
        name="stream",
        kind=Kind.FLAG,
        meaning="True: the answer comes as server-sent events. gRPC always streams.",
        names=at(GENERATING, "stream"),
        default="false",
        neutral=False,
        instead=MappingProxyType({Place.BATCH: "a batch is not streamed"}),
        changes_answer=False,
    ),
    RequestField(
        name="stream_options",
        kind=Kind.OBJECT,
        meaning="What a stream tells beside its text.",
        names=at(OPENAI, "stream_options"),
        default="none",
        instead=MappingProxyType(
            {Place.GENERATE: f"a stream of {Place.GENERATE} ends with its counts by itself"}
        ),
        changes_answer=False,
    ),
    RequestField(
        name="logprobs",
        kind=Kind.FLAG,
        meaning="True: log-probabilities of the tokens are told.",
        names=at((Place.CHAT,), "logprobs"),
        default="false",
        neutral=False,
        hint="top_logprobs says how many",
        instead=MappingProxyType(
            {Place.GENERATE: f"log-probabilities are told by {Place.COMPLETIONS}"}
        ),
        changes_answer=False,
    ),
)

NESTED: tuple[RequestField, ...] = (
    RequestField(
        name="role",
        kind=Kind.TEXT,
        meaning="Who speaks: system, user, assistant, or another that the chat template knows.",
        names=at((Place.MESSAGE,), "role"),
        default="required",
        proto=("Message.role",),
    ),
    RequestField(
        name="content",
        kind=Kind.CONTENT,
        meaning="What was said; null from the assistant is an empty turn.",
        names=at((Place.MESSAGE,), "content"),
        default="required, except from the assistant",
        proto=("Message.content",),
    ),
    RequestField(
        name="name",
        kind=Kind.TEXT,
        meaning="The name of the speaker, where the chat template uses one.",
        names=at((Place.MESSAGE,), "name"),
        default="none",
        proto=("Message.name",),
    ),
    RequestField(
        name="type",
        kind=Kind.TEXT,
        meaning="The kind of the part: text, or input_text.",
        names=at((Place.PART,), "type"),
        default="required",
    ),
    RequestField(
        name="text",
        kind=Kind.TEXT,
        meaning="The text of the part.",
        names=at((Place.PART,), "text"),
        default="required",
    ),
    RequestField(
        name="include_usage",
        kind=Kind.FLAG,
        meaning="True: the last chunk before [DONE] carries the counts of tokens.",
        names=at((Place.STREAM_OPTIONS,), "include_usage"),
        default="false",
        neutral=False,
        changes_answer=False,
    ),
)
