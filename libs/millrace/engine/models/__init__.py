"""Model routes: `llama` is native, `generic` borrows the model code of transformers."""
