"""Fields of other servers about what the reply is to look like."""

from __future__ import annotations

from functools import partial

from .field import ForeignField, harmless, refused

_form = partial(refused, feature="constrained output")
_shown = partial(refused, feature="telling this in the reply")

CONSTRAINTS: tuple[ForeignField, ...] = (
    _form("response_format", "OpenAI", "The form of the output.", off=({"type": "text"},)),
    _form("structured_outputs", "vLLM", "A schema, pattern, choice or grammar."),
    _form("guided_json", "vLLM", "A JSON schema that the output must match."),
    _form("guided_regex", "vLLM", "A pattern that the output must match."),
    _form("guided_choice", "vLLM", "Texts of which the output must be one."),
    _form("guided_grammar", "vLLM", "A grammar that the output must follow."),
    harmless("guided_decoding_backend", "vLLM", "Which library does it."),
    harmless("guided_whitespace_pattern", "vLLM", "Whitespace that guided_json allows."),
    _form("structural_tag", "vLLM, SGLang", "Tags whose content follows a schema."),
    _form("guided_decoding_params", "TensorRT-LLM", "A schema, pattern or grammar."),
    _form("grammar", "llama.cpp, TGI", "A grammar that the output must follow."),
    _form("grammar_string", "text-generation-webui", "A grammar to follow."),
    _form("json_schema", "llama.cpp, SGLang", "A JSON schema that the output must match."),
    _form("json", "vLLM", "A JSON schema that the output must match."),
    _form("regex", "SGLang", "A pattern that the output must match."),
    _form("ebnf", "SGLang", "A grammar that the output must follow."),
    _form("choice", "vLLM", "Texts of which the output must be one."),
    _form("format", "Ollama", "The word json, or a JSON schema to match."),
    _form("output_format", "Anthropic", "The form of the output."),
    _form("output_config", "Anthropic", "The form of the output."),
    _form("response_schema", "Gemini", "A schema that the output must match."),
    _form("response_mime_type", "Gemini", "The output's media type.", off=("text/plain",)),
    _form("force_json_object", "Mistral", "The output must be JSON."),
)

LOGPROBS: tuple[ForeignField, ...] = (
    refused(
        "prompt_logprobs",
        "vLLM",
        "Log-probabilities of the prompt.",
        feature="log-probabilities of the prompt",
    ),
    refused("echo", "OpenAI, vLLM", "Repeats the prompt.", feature="repeating the prompt"),
    refused("return_full_text", "TGI", "Repeats the prompt.", feature="repeating the prompt"),
    refused("n_probs", "llama.cpp", "How many likeliest tokens to tell.", say="logprobs", off=(0,)),
    refused("top_n_tokens", "TGI", "How many likeliest tokens to tell.", say="logprobs", off=(0,)),
    refused("top_logprobs_num", "SGLang", "How many to tell.", say="top_logprobs", off=(0,)),
    refused("return_logprob", "SGLang", "Whether log-probabilities are told.", say="logprobs"),
    refused("return_log_probs", "Triton", "Whether they are told.", say="logprobs"),
    refused("response_logprobs", "Gemini", "Whether they are told.", say="logprobs"),
    _shown("logprob_token_ids", "vLLM", "Tokens whose log-probabilities are told."),
    _shown("token_ids_logprob", "SGLang", "Tokens whose log-probabilities are told."),
    _shown("post_sampling_probs", "llama.cpp", "Probabilities after truncation."),
    harmless("logprob_start_len", "SGLang", "Where log-probabilities begin."),
)

TEXT: tuple[ForeignField, ...] = (
    refused(
        "skip_special_tokens",
        "vLLM, SGLang, TGI",
        "False shows special tokens in the text.",
        feature="showing special tokens",
        only=(True,),
    ),
    refused(
        "spaces_between_special_tokens",
        "vLLM",
        "False puts no spaces between special tokens.",
        feature="showing special tokens",
        only=(True,),
    ),
    refused(
        "detokenize",
        "vLLM",
        "False gives no text.",
        feature="a reply without text",
        only=(True,),
    ),
    refused("watermark", "TGI", "Marks the text as generated.", feature="watermarks"),
    refused("watermarking", "vLLM", "Marks the text as generated.", feature="watermarks"),
    refused("audio", "OpenAI", "Speaks the answer.", feature="audio output"),
    refused(
        "modalities",
        "OpenAI",
        "What the output consists of.",
        feature="anything but text",
        off=(["text"],),
    ),
    refused("response_modalities", "Gemini", "As above.", feature="anything but text"),
)

EXTRAS: tuple[ForeignField, ...] = (
    _shown("return_token_ids", "vLLM, SGLang", "Token ids; the gRPC API tells them."),
    _shown("return_tokens", "llama.cpp", "Token ids; the gRPC API tells them."),
    _shown("return_tokens_as_token_ids", "vLLM", "Token ids in place of texts."),
    _shown("return_prompt_token_ids", "SGLang", "Token ids of the prompt."),
    _shown("return_prompt_text", "vLLM", "The rendered prompt."),
    _shown("return_text_in_logprobs", "SGLang", "Texts beside token ids."),
    _shown("return_hidden_states", "SGLang", "Vectors of the model."),
    _shown("return_routed_experts", "vLLM, SGLang", "Which experts worked."),
    _shown("return_context_logits", "TensorRT-LLM", "Logits of the prompt."),
    _shown("return_generation_logits", "TensorRT-LLM", "Logits of the output."),
    _shown("decoder_input_details", "TGI", "Log-probabilities of the prompt."),
    _shown("details", "TGI", "Token by token what was generated."),
    _shown("response_fields", "llama.cpp", "Which fields the reply has."),
    _shown("include", "OpenAI responses", "Further things to tell."),
    _shown("background", "OpenAI responses", "Answers later, on request."),
    _shown("raw_output", "Fireworks", "Token by token what was read and generated."),
    harmless("return_cached_tokens_details", "SGLang", "More about the cached tokens."),
    harmless("return_meta_info", "SGLang", "More about the request."),
    harmless("return_perf_metrics", "TensorRT-LLM", "Times of the request."),
    harmless("perf_metrics_in_response", "Fireworks", "Times of the request."),
    harmless("timings_per_token", "llama.cpp", "Times in every chunk."),
    harmless("return_progress", "llama.cpp", "How far the prompt is."),
    harmless("verbose", "many clients", "More words about the request."),
    harmless("usage", "OpenRouter", "Whether the counts of tokens are told; they are."),
    harmless("exclude_input_in_output", "Triton", "Leaves the prompt out, as ever here."),
)

FOREIGN_REPLY = (*CONSTRAINTS, *LOGPROBS, *TEXT, *EXTRAS)
