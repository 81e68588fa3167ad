"""Fields of other servers about what the model reads: prompt, template, tools, media."""

from __future__ import annotations

from functools import partial

from .field import ForeignField, Place, harmless, refused

_template = partial(refused, feature="changing the chat template")
_tools = partial(refused, feature="calling tools")
_functions = partial(refused, feature="calling functions")
_media = partial(refused, feature="reading anything but text")
_cut = partial(refused, feature="truncation of the prompt")
# False is a wish too: the template of a model that thinks may do so unless told not to.
_thinking = partial(
    refused, feature="control of the model's reasoning", only=(None,), tolerated=(False,)
)
_search = partial(refused, feature="web search")
_persona = partial(refused, say="messages")

_BESIDE_CHAT = (Place.COMPLETIONS, Place.GENERATE, Place.BATCH)

PROMPT: tuple[ForeignField, ...] = (
    refused("prompts", "many clients", "Several prompts.", say="requests", places=(Place.BATCH,)),
    refused("input", "OpenAI responses", "What to answer.", say="messages or prompt"),
    refused("inputs", "TGI, SageMaker", "What to continue.", say="prompt"),
    refused("text_input", "Triton", "What to continue.", say="prompt"),
    refused("contents", "Gemini", "The conversation.", say="messages"),
    refused("input_ids", "SGLang, TensorRT-LLM", "The prompt as token ids.", say="prompt"),
    refused("prompt_token_ids", "vLLM", "The prompt as token ids.", say="prompt"),
    refused("prompt_embeds", "vLLM", "The prompt as vectors.", feature="prompts as vectors"),
    refused("input_embeds", "SGLang", "The prompt as vectors.", feature="prompts as vectors"),
    refused("system", "Ollama, Anthropic", "Instructions.", say="a message with the role system"),
    refused("system_prompt", "llama.cpp", "Instructions.", say="a message with the role system"),
    refused("instructions", "OpenAI responses", "Instructions.", say="a message of role system"),
    refused("system_instruction", "Gemini", "Instructions.", say="a message of role system"),
    refused("suffix", "OpenAI, Ollama", "What follows.", feature="text after the completion"),
    refused("input_suffix", "llama.cpp", "What follows.", feature="text after the completion"),
    refused("input_prefix", "llama.cpp", "What precedes.", say="prompt"),
    refused("documents", "vLLM, Cohere", "Texts to answer from.", feature="documents"),
    refused("data_sources", "Azure", "Where to look things up.", feature="documents"),
    refused("context", "Ollama", "Token ids of an earlier reply.", feature="a stored context"),
    refused("session_params", "SGLang", "A session to go on with.", feature="a stored context"),
    refused("previous_response_id", "OpenAI responses", "What went before.", say="messages"),
    refused("conversation", "OpenAI responses", "A stored conversation.", say="messages"),
    refused(
        "safe_prompt", "Mistral", "Puts a safety prompt first.", say="a message of role system"
    ),
    refused("negative_prompt_ids", "transformers", "Guidance.", feature="this way of sampling"),
)

LIMITS: tuple[ForeignField, ...] = (
    _cut("truncate_prompt_tokens", "vLLM", "Keeps this many tokens of the prompt."),
    _cut("truncate", "TGI, Cohere", "Keeps this many tokens of the prompt.", off=("NONE",)),
    _cut("truncation", "OpenAI responses", "What to do if it is long.", off=("disabled",)),
    _cut("truncation_length", "text-generation-webui", "Keeps so many tokens.", off=(0,)),
    _cut("prompt_truncate_len", "Fireworks", "Keeps this many tokens of the prompt."),
    _cut("context_length_exceeded_behavior", "Together", "What if it is long.", off=("error",)),
    _cut("transforms", "OpenRouter", "Shortens a prompt in its middle."),
    _cut("n_keep", "llama.cpp", "Tokens to keep if the context overflows.", off=(0, -1)),
    _cut("num_keep", "Ollama", "Tokens to keep if the context overflows.", off=(0, -1)),
    _cut("num_ctx", "Ollama", "Length of the context, to which prompts are cut."),
    _cut("n_ctx", "llama.cpp", "Length of the context, to which prompts are cut."),
    _cut("context_length", "LM Studio", "Length of the context, to which prompts are cut."),
    harmless("truncation_side", "vLLM", "Which end truncate_prompt_tokens keeps."),
)

TEMPLATE: tuple[ForeignField, ...] = (
    _template("chat_template", "vLLM, transformers", "A chat template in the request."),
    _template("chat_template_kwargs", "vLLM, SGLang, llama.cpp", "Arguments of the template."),
    _template("chat_template_str", "text-generation-webui", "A chat template."),
    _template("instruction_template", "text-generation-webui", "A template by name."),
    _template("instruction_template_str", "text-generation-webui", "A chat template."),
    _template("template", "Ollama", "A template of the prompt."),
    _template("prompt_template", "Replicate", "A template of the prompt."),
    _template("raw", "Ollama", "Leaves the template out."),
    _template("mode", "text-generation-webui", "What kind of chat it is.", off=("instruct",)),
    _template("guideline", "TGI", "A guideline for the template."),
    _template("prompt_mode", "Mistral", "Which system prompt the template takes."),
    refused(
        "continue_final_message",
        "vLLM, SGLang, transformers",
        "Goes on with the last message.",
        feature="continuing the last message",
    ),
    refused(
        "continue_",
        "text-generation-webui",
        "Goes on with the last message.",
        feature="continuing the last message",
    ),
    refused(
        "add_generation_prompt",
        "vLLM, transformers",
        "False opens no turn of the assistant.",
        feature="a prompt that opens no turn",
        only=(True,),
    ),
    refused(
        "add_special_tokens",
        "vLLM",
        "Adds special tokens to those of the template.",
        feature="changing which special tokens are added",
        places=(Place.CHAT,),
    ),
    refused(
        "add_special_tokens",
        "vLLM",
        "False adds no special tokens to the prompt.",
        feature="changing which special tokens are added",
        only=(True,),
        places=_BESIDE_CHAT,
    ),
    refused(
        "add_bos_token",
        "text-generation-webui",
        "False leaves the first special token out.",
        feature="changing which special tokens are added",
        only=(True,),
    ),
    _persona("character", "text-generation-webui", "A persona by name."),
    _persona("bot_name", "text-generation-webui", "Name of the persona."),
    _persona("user_name", "text-generation-webui", "Name of the user."),
    _persona("user_bio", "text-generation-webui", "About the user."),
    _persona("greeting", "text-generation-webui", "First words of the persona."),
    _persona("impersonate", "text-generation-webui", "Goes on with the user's message."),
)

TOOLS: tuple[ForeignField, ...] = (
    _tools("tools", "OpenAI", "What the model may call."),
    _tools("tool_choice", "OpenAI", "Whether it calls, and what.", off=("none", "auto")),
    _tools("tool_config", "Gemini, Bedrock", "How the model calls tools."),
    _tools("tool_resources", "OpenAI assistants", "Files for tools."),
    _tools("tool_prompt", "TGI", "What is written before the tools."),
    _tools("mcp_servers", "Anthropic", "Servers that have tools."),
    _tools("plugins", "OpenRouter", "Services that work on the request."),
    _functions("functions", "OpenAI, older", "What the model may call."),
    _functions("function_call", "OpenAI, older", "Whether it calls.", off=("none", "auto")),
    harmless("parallel_tool_calls", "OpenAI", "Whether several tools are called at once."),
    harmless("parse_tool_calls", "llama.cpp", "Whether calls are read out of the text."),
    _search("web_search_options", "OpenAI", "How to search the web."),
    _search("search_parameters", "xAI", "How to search the web."),
    _search("enable_search", "Qwen", "Whether to search the web."),
    _search("search_domain_filter", "Perplexity", "Where to search."),
    _search("search_recency_filter", "Perplexity", "How new what is found must be."),
)

MEDIA: tuple[ForeignField, ...] = (
    _media("images", "Ollama", "Pictures to read."),
    _media("image_data", "SGLang, llama.cpp", "Pictures to read."),
    _media("image_url", "many clients", "A picture to read."),
    _media("video_data", "SGLang", "Films to read."),
    _media("audio_data", "SGLang", "Sound to read."),
    _media("multimodal_data", "llama.cpp", "Pictures and sound to read."),
    _media("mm_processor_kwargs", "vLLM", "How pictures are prepared."),
    _media("media_io_kwargs", "vLLM", "How media are loaded."),
    _media("images_config", "SGLang", "How pictures are prepared."),
)

REASONING: tuple[ForeignField, ...] = (
    _thinking("enable_thinking", "Qwen, SiliconFlow", "Whether the model thinks first."),
    _thinking("think", "Ollama", "Whether the model thinks first."),
    _thinking(
        "thinking",
        "Anthropic, DeepSeek",
        "Whether the model thinks first, and how long.",
        tolerated=(False, {"type": "disabled"}),
    ),
    _thinking(
        "reasoning",
        "OpenRouter, OpenAI responses",
        "How much the model thinks first.",
        only=({},),
        tolerated=(False, {"effort": "none"}, {"enabled": False}, {"exclude": True}),
    ),
    _thinking("thinking_budget", "Qwen, Gemini", "Most tokens of thinking.", only=(-1,)),
    _thinking("thinking_token_budget", "vLLM", "Most tokens of thinking.", only=(-1,)),
    _thinking("reasoning_budget", "llama.cpp", "Most tokens of thinking.", only=(-1,)),
    _thinking("thinking_budget_tokens", "llama.cpp", "Most tokens of thinking.", only=(-1,)),
    refused(
        "thinking_forced_open",
        "llama.cpp",
        "Starts inside the thinking.",
        feature="control of the model's reasoning",
    ),
    harmless("reasoning_effort", "OpenAI", "A wish how much a reasoning model thinks."),
    harmless("verbosity", "OpenAI", "A wish how long the answer is."),
    harmless("include_reasoning", "OpenRouter, vLLM", "Whether thinking is shown apart."),
    harmless("separate_reasoning", "SGLang", "Whether thinking is shown apart."),
    harmless("stream_reasoning", "SGLang", "Whether thinking is streamed."),
    harmless("reasoning_format", "llama.cpp, Groq", "How thinking is shown."),
)

FOREIGN_PROMPT = (*PROMPT, *LIMITS, *TEMPLATE, *TOOLS, *MEDIA, *REASONING)
