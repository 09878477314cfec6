"""Text to tokens: corpora, tokenizers, token stores, batches."""
