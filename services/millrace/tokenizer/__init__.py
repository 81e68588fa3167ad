"""The tokenizer service: chat templates, encoding, incremental decoding. Stateless."""
