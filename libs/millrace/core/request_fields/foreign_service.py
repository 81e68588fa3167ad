"""Fields of other servers about who serves a request and how; and fields inside of objects."""

from __future__ import annotations

from functools import partial

from .field import ForeignField, Place, harmless, refused

_flat = partial(refused, say="its fields in the request itself")
_adapter = partial(refused, feature="adapters")
_safety = partial(refused, feature="content filters")

WRAPPERS: tuple[ForeignField, ...] = (
    _flat("options", "Ollama", "An object of sampling fields."),
    _flat("parameters", "TGI, SageMaker", "An object of sampling fields."),
    _flat("sampling_params", "SGLang, vLLM", "An object of sampling fields."),
    _flat("sampling_parameters", "Triton", "An object of sampling fields."),
    _flat("generation_config", "Gemini, transformers", "An object of sampling fields."),
    _flat("extra_body", "OpenAI python", "An argument of the client that got into the body."),
    _flat("extra_args", "vLLM", "An object of further fields."),
    _flat("vllm_xargs", "vLLM", "An object of further fields."),
    _flat("nvext", "Dynamo", "An object of further fields."),
    harmless("extra_headers", "OpenAI python", "An argument of the client."),
    harmless("extra_query", "OpenAI python", "An argument of the client."),
)

MODELS: tuple[ForeignField, ...] = (
    refused("models", "OpenRouter", "Models to fall back to.", say="model"),
    _adapter("lora_adapter", "vLLM", "An adapter on top of the model."),
    _adapter("lora_request", "vLLM", "An adapter on top of the model."),
    _adapter("lora_path", "SGLang", "An adapter on top of the model."),
    _adapter("lora", "llama.cpp", "Adapters on top of the model."),
    _adapter("lora_config", "TensorRT-LLM", "An adapter on top of the model."),
    _adapter("adapter_id", "TGI", "An adapter on top of the model."),
    _adapter("adapters", "many servers", "Adapters on top of the model."),
    harmless("draft_model", "LM Studio", "A model that guesses ahead; changes only the speed."),
    harmless("prediction", "OpenAI", "Likely output; changes only the speed."),
    harmless("speculative", "llama.cpp", "Guessing ahead; changes only the speed."),
    harmless("lookahead_config", "TensorRT-LLM", "Guessing ahead; changes only the speed."),
    harmless("provider", "OpenRouter", "Which provider serves it; there is one here."),
    harmless("route", "OpenRouter", "How a provider is chosen; there is one here."),
)

ACCOUNT: tuple[ForeignField, ...] = (
    harmless("user", "OpenAI", "Who the end user is."),
    harmless("metadata", "OpenAI, Anthropic", "Notes to find the request again."),
    harmless("store", "OpenAI", "Whether the reply is kept; it is not."),
    harmless("service_tier", "OpenAI", "What kind of service is paid for."),
    harmless("safety_identifier", "OpenAI", "Who the end user is."),
    harmless("moderation", "OpenAI", "How the request is looked at."),
    harmless("request_id", "vLLM", "The client's id of the request; ours is in x-request-id."),
    harmless("rid", "SGLang", "The client's id of the request; ours is in x-request-id."),
    harmless("session_id", "vLLM, OpenRouter", "Which requests belong together."),
    harmless("custom_labels", "SGLang", "Labels of metrics."),
    harmless("extra_key", "SGLang", "What class of request it is."),
    harmless("trace", "OpenRouter", "Notes for tracing; send the header traceparent."),
    _safety("safety_model", "Together", "A model that looks at the answer."),
    _safety("safety_settings", "Gemini", "What is filtered."),
    _safety("safety_mode", "Cohere", "What is filtered.", off=("NONE", "OFF")),
    _safety("guardrails", "Mistral, Bedrock", "What is filtered."),
)

MACHINE: tuple[ForeignField, ...] = (
    harmless("prompt_cache_key", "OpenAI", "Which prompts begin alike; found without it."),
    harmless("prompt_cache_retention", "OpenAI", "How long beginnings of prompts are kept."),
    harmless("prompt_cache_options", "OpenAI", "How beginnings of prompts are kept."),
    harmless("cache_control", "Anthropic, OpenRouter", "Which beginning of the prompt is kept."),
    harmless("cache_prompt", "llama.cpp", "Whether the beginning of the prompt is kept."),
    harmless("n_cache_reuse", "llama.cpp", "How pieces of the prompt are used again."),
    refused("cache_salt", "vLLM, SGLang", "Keeps caches apart.", feature="caches kept apart"),
    harmless("keep_alive", "Ollama", "How long the model stays loaded; it stays."),
    harmless("ttl", "LM Studio", "How long the model stays loaded; it stays."),
    harmless("id_slot", "llama.cpp", "Which seat the request takes."),
    harmless("slot_id", "llama.cpp, older", "Which seat the request takes."),
    harmless("stream_interval", "vLLM", "Tokens per chunk."),
    harmless("sse_ping_interval", "llama.cpp", "How often an idle stream is pinged."),
    harmless("num_thread", "Ollama", "Threads of the engine."),
    harmless("n_threads", "llama.cpp", "Threads of the engine."),
    harmless("num_gpu", "Ollama", "Layers on the GPU."),
    harmless("main_gpu", "Ollama", "Which GPU works."),
    harmless("num_batch", "Ollama", "Tokens per step of the engine."),
    harmless("low_vram", "Ollama", "Saves memory of the GPU."),
    harmless("use_mmap", "Ollama", "Whether weights are mapped."),
    harmless("use_mlock", "Ollama", "Whether weights are kept in memory."),
    harmless("numa", "Ollama", "How memory is placed."),
    harmless("bootstrap_host", "SGLang", "Where a prefill server is."),
    harmless("bootstrap_port", "SGLang", "Where a prefill server is."),
    harmless("bootstrap_room", "SGLang", "Where a prefill server is."),
    harmless("data_parallel_rank", "SGLang", "Which worker serves it."),
    harmless("routed_dp_rank", "SGLang", "Which worker serves it."),
    harmless("kv_transfer_params", "vLLM", "How K/V travels between servers."),
    harmless("ec_transfer_params", "vLLM", "How encodings travel between servers."),
)

_MESSAGE = (Place.MESSAGE,)
_of_message = partial(harmless, places=_MESSAGE)
_not_of_message = partial(refused, places=_MESSAGE)

IN_MESSAGE: tuple[ForeignField, ...] = (
    _not_of_message("tool_calls", "OpenAI", "What the model called.", feature="calling tools"),
    _not_of_message("tool_call_id", "OpenAI", "Which call it answers.", feature="calling tools"),
    _not_of_message("tool_name", "Ollama", "Which tool it answers.", feature="calling tools"),
    _not_of_message("tools", "SGLang", "What the model may call.", feature="calling tools"),
    _not_of_message("function_call", "OpenAI", "What it called.", feature="calling functions"),
    _not_of_message("audio", "OpenAI", "What was spoken.", feature="audio"),
    _not_of_message("images", "Ollama", "Pictures.", feature="reading anything but text"),
    _not_of_message("attachments", "AI SDK", "Files.", feature="reading anything but text"),
    _not_of_message(
        "experimental_attachments", "AI SDK", "Files.", feature="reading anything but text"
    ),
    _not_of_message("documents", "Cohere", "Texts to answer from.", feature="documents"),
    _not_of_message("refusal", "OpenAI", "Why the model would not.", feature="a refusal"),
    _not_of_message(
        "prefix",
        "DeepSeek, Mistral",
        "The message is the beginning of the answer.",
        feature="continuing the last message",
    ),
    _not_of_message("partial", "Kimi", "As prefix.", feature="continuing the last message"),
    _not_of_message("parts", "AI SDK, Gemini", "What was said.", say="content"),
    _not_of_message("text", "many clients", "What was said.", say="content"),
    _of_message("reasoning_content", "DeepSeek, vLLM", "What the model thought then."),
    _of_message("reasoning", "OpenRouter, vLLM", "What the model thought then."),
    _of_message("reasoning_details", "OpenRouter", "What the model thought then."),
    _of_message("thinking", "Ollama", "What the model thought then."),
    _of_message("thinking_blocks", "LiteLLM", "What the model thought then."),
    _of_message("cache_control", "Anthropic", "Which beginning of the prompt is kept."),
    _of_message("weight", "OpenAI, Mistral", "How much it counts in training."),
    _of_message("annotations", "OpenAI", "Sources of a reply."),
    _of_message("citations", "Anthropic", "Sources of a reply."),
    _of_message("id", "OpenAI responses", "Its id elsewhere."),
    _of_message("type", "OpenAI responses", "That it is a message."),
    _of_message("status", "OpenAI responses", "That it is complete."),
    _of_message("metadata", "many clients", "Notes about it."),
    _of_message("timestamp", "many clients", "When it was said."),
    _of_message("created_at", "Ollama, AI SDK", "When it was said."),
    _of_message("provider_specific_fields", "LiteLLM", "What another server said."),
)

_of_part = partial(harmless, places=(Place.PART,))

IN_PART: tuple[ForeignField, ...] = (
    _of_part("cache_control", "Anthropic", "Which beginning of the prompt is kept."),
    _of_part("prompt_cache_breakpoint", "OpenAI", "Which beginning of the prompt is kept."),
    _of_part("annotations", "OpenAI", "Sources of a reply."),
    _of_part("citations", "Anthropic", "Sources of a reply."),
    _of_part("logprobs", "OpenAI responses", "Log-probabilities of a reply."),
    _of_part("id", "many clients", "Its id elsewhere."),
)

IN_STREAM_OPTIONS: tuple[ForeignField, ...] = (
    harmless(
        "include_obfuscation",
        "OpenAI",
        "Random text that hides the length of chunks.",
        places=(Place.STREAM_OPTIONS,),
    ),
    refused(
        "continuous_usage_stats",
        "vLLM, SGLang",
        "Counts of tokens in every chunk.",
        feature="counts in every chunk",
        places=(Place.STREAM_OPTIONS,),
    ),
)

FOREIGN_SERVICE = (*WRAPPERS, *MODELS, *ACCOUNT, *MACHINE)
FOREIGN_NESTED = (*IN_MESSAGE, *IN_PART, *IN_STREAM_OPTIONS)
