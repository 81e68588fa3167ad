"""Fields of other servers about how tokens are drawn and when the output ends."""

from __future__ import annotations

from functools import partial

from .field import ForeignField, harmless, refused

_way = partial(refused, feature="this way of sampling")
_beam = partial(refused, feature="beam search")
_penalty = partial(refused, feature="this kind of penalty")
_bans = partial(refused, feature="allowing and banning tokens by list")
_say_max = partial(refused, say="max_tokens", off=(-1,))

LENGTH: tuple[ForeignField, ...] = (
    _say_max("n_predict", "llama.cpp", "Most tokens to generate."),
    _say_max("num_predict", "Ollama", "Most tokens to generate."),
    _say_max("max_new_tokens", "TGI, SGLang, transformers", "Most tokens to generate."),
    _say_max("max_output_tokens", "OpenAI responses, Gemini", "Most tokens to generate."),
    _say_max("max_gen_toks", "lm-evaluation-harness", "Most tokens to generate."),
    _say_max("max_length", "transformers", "Most tokens of prompt and output together."),
    _say_max("max_tokens_to_sample", "Anthropic", "Most tokens to generate."),
    refused("auto_max_new_tokens", "text-generation-webui", "Fills the context.", say="max_tokens"),
    refused("min_new_tokens", "SGLang", "Fewest tokens to generate.", say="min_tokens", off=(0,)),
    refused("min_length", "TensorRT-LLM", "Fewest tokens.", say="min_tokens", off=(0, 1)),
    refused("n_cmpl", "llama.cpp", "How many answers to generate.", say="n", off=(1,)),
    refused("candidate_count", "Gemini", "How many answers to generate.", say="n", off=(1,)),
    refused("num_generations", "Cohere", "How many answers to generate.", say="n", off=(1,)),
    refused("num_return_sequences", "transformers", "How many answers.", say="n", off=(1,)),
    refused("timeout", "many clients", "Longest time, in a unit that differs.", say="timeout_ms"),
    refused("request_timeout", "OpenAI python 0.x", "Longest time, seconds.", say="timeout_ms"),
    refused("max_time", "transformers", "Longest time, seconds.", say="timeout_ms"),
    refused("t_max_predict_ms", "llama.cpp", "Longest time.", say="timeout_ms", off=(0,)),
    refused(
        "max_tokens_second",
        "text-generation-webui",
        "Fewest milliseconds between tokens.",
        feature="slowing a stream down",
        off=(0,),
    ),
)

ENDS: tuple[ForeignField, ...] = (
    refused("stop_sequences", "Anthropic, TGI, Cohere", "Strings that end the output.", say="stop"),
    refused("stop_strings", "transformers", "Strings that end the output.", say="stop"),
    refused("stop_words", "TensorRT-LLM", "Strings that end the output.", say="stop"),
    refused("stopping_strings", "text-generation-webui", "End the output.", say="stop"),
    refused("custom_stopping_strings", "text-generation-webui", "End the output.", say="stop"),
    refused("stop_regex", "SGLang", "Patterns that end the output.", feature="stop patterns"),
    refused("eos_token_id", "transformers", "Ends the output.", say="stop_token_ids"),
    refused("end_id", "TensorRT-LLM", "Ends the output.", say="stop_token_ids"),
    harmless("pad_token_id", "transformers", "Fills batches; nothing is padded here."),
    harmless("pad_id", "TensorRT-LLM", "Fills batches; nothing is padded here."),
    refused("ban_eos_token", "text-generation-webui", "Goes on past the end.", say="ignore_eos"),
    refused(
        "include_stop_str_in_output",
        "vLLM",
        "Keeps the stop string that matched.",
        feature="keeping the stop string",
    ),
    refused(
        "no_stop_trim",
        "SGLang",
        "Keeps the stop string that matched.",
        feature="keeping the stop string",
    ),
    refused(
        "repetition_detection",
        "vLLM",
        "Ends an output that repeats itself.",
        feature="ending at repetitions",
    ),
    refused(
        "n_indent",
        "llama.cpp",
        "Ends the output at a shallower indentation.",
        feature="ending by indentation",
        off=(0,),
    ),
)

SEEDS: tuple[ForeignField, ...] = (
    refused("random_seed", "Mistral", "Key of the random numbers.", say="seed"),
    refused("sampling_seed", "SGLang", "Key of the random numbers.", say="seed"),
    refused("sampler_seed", "KoboldCpp", "Key of the random numbers.", say="seed", off=(-1,)),
)

SAMPLERS: tuple[ForeignField, ...] = (
    refused("k", "Cohere", "Keeps this many of the likeliest tokens.", say="top_k", off=(0,)),
    refused("p", "Cohere", "Keeps tokens up to this probability.", say="top_p", off=(1,)),
    refused(
        "do_sample",
        "transformers, TGI",
        "False always takes the likeliest token.",
        say="temperature: 0",
        only=(True,),
    ),
    _way("typical_p", "llama.cpp, TGI, vLLM", "Keeps typical tokens.", off=(1,)),
    _way("typical", "KoboldCpp", "Keeps typical tokens.", off=(1,)),
    _way("tfs_z", "llama.cpp, Ollama", "Tail-free sampling.", off=(1,)),
    _way("tfs", "KoboldCpp", "Tail-free sampling.", off=(1,)),
    _way("top_a", "OpenRouter, KoboldCpp", "Keeps tokens near the likeliest one.", off=(0,)),
    _way("top_n_sigma", "llama.cpp", "Keeps logits within sigmas of the best.", off=(0, -1)),
    _way("epsilon_cutoff", "text-generation-webui", "Least probability of a token.", off=(0,)),
    _way("eta_cutoff", "text-generation-webui", "Least probability, by entropy.", off=(0,)),
    _way("mirostat", "llama.cpp, Ollama", "Steers the surprise of the output.", off=(0,)),
    _way("mirostat_mode", "text-generation-webui", "Steers the surprise.", off=(0,)),
    _way("mirostat_target", "Fireworks", "Steers the surprise of the output."),
    harmless("mirostat_tau", "llama.cpp, Ollama", "Surprise that mirostat aims at."),
    harmless("mirostat_eta", "llama.cpp, Ollama", "How fast mirostat steers."),
    harmless("mirostat_lr", "Fireworks", "How fast mirostat steers."),
    _way("dynamic_temperature", "text-generation-webui", "Temperature by entropy."),
    _way("dynatemp_range", "llama.cpp", "Temperature by entropy.", off=(0,)),
    harmless("dynatemp_low", "text-generation-webui", "Least dynamic temperature."),
    harmless("dynatemp_high", "text-generation-webui", "Highest dynamic temperature."),
    harmless("dynatemp_exponent", "llama.cpp", "Curve of the dynamic temperature."),
    _way("temperature_last", "text-generation-webui", "Applies the temperature last."),
    _way("smoothing_factor", "text-generation-webui", "Bends the distribution.", off=(0,)),
    harmless("smoothing_curve", "text-generation-webui", "Curve of smoothing_factor."),
    _way("xtc_probability", "llama.cpp", "Drops the likeliest tokens now and then.", off=(0,)),
    harmless("xtc_threshold", "llama.cpp", "Which tokens xtc_probability drops."),
    _way("samplers", "llama.cpp", "Order of the stages of sampling."),
    _way("sampler_priority", "text-generation-webui", "Order of the stages of sampling."),
    _way("sampler_order", "KoboldCpp", "Order of the stages of sampling."),
    _way("min_keep", "llama.cpp", "Fewest tokens that truncation leaves.", off=(0, 1)),
    _way("min_tokens_to_keep", "transformers", "Fewest tokens left.", off=(0, 1)),
    _way("top_p_decay", "TensorRT-LLM", "Lets top_p fall as tokens come.", off=(1,)),
    _way("penalty_alpha", "transformers", "Contrastive search.", off=(0,)),
    _way("guidance_scale", "text-generation-webui", "Guidance by a second prompt.", off=(1,)),
    _way("cfg_scale", "llama.cpp", "Guidance by a second prompt.", off=(1,)),
    _way("negative_prompt", "text-generation-webui", "The second prompt of guidance."),
    _way("preset", "text-generation-webui", "Sampling values by the name of a file."),
    _beam("use_beam_search", "vLLM", "Searches for the likeliest whole output."),
    _beam("num_beams", "transformers", "Beams of beam search.", off=(1,)),
    _beam("beam_width", "TensorRT-LLM", "Beams of beam search.", off=(1,)),
    _beam("num_beam_groups", "transformers", "Groups of beams.", off=(1,)),
    _beam("length_penalty", "vLLM, transformers", "Prefers longer beams.", off=(1, 0)),
    _beam("early_stopping", "transformers, vLLM", "When beam search ends.", off=(0,)),
    _beam("diversity_penalty", "transformers", "Keeps groups of beams apart.", off=(0,)),
    refused(
        "best_of",
        "OpenAI, vLLM, TGI",
        "Generates several answers and keeps the likeliest.",
        feature="choosing the best of several",
        same_as="num_choices",
    ),
)

PENALTIES: tuple[ForeignField, ...] = (
    refused(
        "repeat_penalty",
        "llama.cpp, Ollama, LM Studio",
        "Penalty of tokens seen before.",
        say="repetition_penalty",
        off=(1,),
    ),
    refused(
        "rep_pen",
        "KoboldCpp",
        "Penalty of tokens seen before.",
        say="repetition_penalty",
        off=(1,),
    ),
    _penalty("repeat_last_n", "llama.cpp, Ollama", "How far back penalties look.", off=(0, -1)),
    _penalty("repetition_penalty_range", "text-generation-webui", "How far back.", off=(0,)),
    _penalty("rep_pen_range", "KoboldCpp", "How far back penalties look.", off=(0,)),
    _penalty("encoder_repetition_penalty", "text-generation-webui", "Of the prompt.", off=(1,)),
    _penalty("no_repeat_ngram_size", "transformers", "Bans repeated n-grams.", off=(0,)),
    _penalty("penalize_nl", "llama.cpp", "Penalizes newlines too."),
    _penalty("penalize_newline", "Ollama", "Penalizes newlines too."),
    _penalty("dry_multiplier", "llama.cpp", "Penalizes repeated sequences.", off=(0,)),
    harmless("dry_base", "llama.cpp", "Growth of the penalty of dry_multiplier."),
    harmless("dry_allowed_length", "llama.cpp", "Sequences that dry_multiplier leaves alone."),
    harmless("dry_penalty_last_n", "llama.cpp", "How far back dry_multiplier looks."),
    harmless("dry_sequence_breakers", "llama.cpp", "Strings that end a sequence for it."),
)

TOKEN_LISTS: tuple[ForeignField, ...] = (
    _bans("allowed_token_ids", "vLLM", "The only tokens that may come."),
    _bans("bad_words", "vLLM, TensorRT-LLM", "Words that may not come."),
    _bans("bad_words_ids", "transformers", "Token sequences that may not come."),
    _bans("bad", "TensorRT-LLM", "Words that may not come."),
    _bans("banned_tokens", "KoboldCpp", "Strings that may not come."),
    _bans("banned_strings", "KoboldCpp", "Strings that may not come."),
    _bans("custom_token_bans", "text-generation-webui", "Token ids that may not come."),
    _bans("suppress_tokens", "transformers", "Token ids that may not come."),
    _bans("begin_suppress_tokens", "transformers", "Token ids that may not come first."),
    _bans("forced_bos_token_id", "transformers", "The first token of the output."),
    _bans("forced_eos_token_id", "transformers", "The last token of the output."),
    refused("sequence_bias", "transformers", "Biases of token sequences.", say="logit_bias"),
    refused("embedding_bias", "TensorRT-LLM", "Biases of all tokens.", say="logit_bias"),
    _bans("logits_processors", "vLLM", "Code that edits the logits."),
    _bans("logits_processor", "transformers", "Code that edits the logits."),
    _bans("custom_logit_processor", "SGLang", "Code that edits the logits."),
    _bans("custom_params", "SGLang", "Arguments of such code."),
)

FOREIGN_SAMPLING = (*LENGTH, *ENDS, *SEEDS, *SAMPLERS, *PENALTIES, *TOKEN_LISTS)
